"""Features of a frozen backbone, computed once and kept on disk: while only the head trains, it trains on them.

The result is that of the slow way, except for rounding: the same images in the same order, the same dropout before the
head. If images change at random in each epoch, either a fixed number of augmented views of each is computed
(``speed.feature_views``), or the backbone runs in every epoch. Features are kept in a store of the cache
(`data.stores`), float32 [N, views, ...], whose key is a hash of everything that they depend on. It is written under
another name and renamed, so a kill or a second process cannot leave a wrong one.

Knows nothing of epochs, optimizers or run folders; `training.loop` trains on features as it does on images.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tellapart import augment as augmentation
from tellapart import numerals
from tellapart.data.loader import ImageSet, RawBatch, batches, source_sizes
from tellapart.data.sources.archives import cache_folder
from tellapart.data.stores import cache, housekeeping
from tellapart.data.stores import images as decoded
from tellapart.devices import halved, is_out_of_memory, release
from tellapart.errors import CacheError, ModelError
from tellapart.evaluation.infer import batch_that_pays
from tellapart.models import frozen
from tellapart.preprocess import Views, as_tensor, normalise
from tellapart.spec import AugmentSpec, Spec, to_dict
from tellapart.training import setup, stages
from tellapart.training.distributed import Processes
from tellapart.training.speed import fitting
from tellapart.training.step import Plan, Way, step_seed
from tellapart.training.task import Batch, Task
from tellapart.training.validation import autocast, validator

FORMAT = 1  # of the files; with another number features are computed again
_CHUNK = 256  # images whose random numbers are drawn together, and that one process computes
_VIEWS_STREAM = 1 << 32  # separate from the streams of training's steps


class Screen(Protocol):
    """Reports while features are computed."""

    def message(self, text: str) -> None:
        """A piece of information."""

    def busy(self, label: str, total: int | None = None) -> Any:
        """Return a context manager with ``advance(n)``."""


def expected(spec: Spec) -> bool:
    """Return whether a whole run will train on features, as far as its spec says."""
    head = spec.model.finetune == "head"
    fitted = stages.fitted_at(spec, 0) and spec.training.epochs == 1
    return head and (fitted or (spec.speed.features and not _obstacle(spec)))


def offer(plan: Plan, prepared: setup.RunData, processes: Processes, screen: Screen) -> None:
    """Give the plan its way on features if that is possible; otherwise say what prevents it.

    Nothing is computed yet. Does nothing if no stage trains the head alone, or ``speed.features`` is off.
    """
    spec, split = plan.spec, None
    if stages.fitted_at(spec, 0):
        cut = fitting.cut_off(plan.model, plan.blocks, prepared, processes.device)
        plan.fitting = functools.cache(_Maker(plan, prepared, processes, screen, cut, 1).fitting)
    if not spec.speed.features or not _trains_head_alone(spec):
        return
    obstacle = _obstacle(spec)
    if not obstacle and not plan.task.on_features:
        obstacle = "the task needs the images themselves."
    if not obstacle:
        try:
            split = fitting.cut_off(plan.model, plan.blocks, prepared, processes.device)
        except ModelError as error:
            obstacle = f"it cannot be cut off: {error}."
    if split is None:
        screen.message(f"The frozen backbone runs in every epoch, since {obstacle}")
        return
    views = spec.speed.feature_views if changing(spec.augment) else 1
    maker = _Maker(plan, prepared, processes, screen, split, views)
    plan.on_features = functools.cache(maker.way)


def _trains_head_alone(spec: Spec) -> bool:
    """Return whether the optimizer's steps train the head alone at some time."""
    fitted = stages.fitted_at(spec, 0)
    return spec.model.finetune == "staged" or (
        spec.model.finetune == "head" and spec.training.epochs > fitted
    )


def _obstacle(spec: Spec) -> str:
    """Return what in the spec prevents computing features once, and what would help; empty for nothing."""
    if spec.training.quantize != "none":
        return "it computes with rounded weights (training.quantize)."
    if spec.distill.teacher:
        return "there is a teacher, which needs whole images (distill.teacher)."
    if spec.training.start_size:
        return "the size of the images changes (training.start_size)."
    if spec.input.views != "one":
        return f"validation averages several views (input.views is {spec.input.views!r})."
    if spec.augment.mixup or spec.augment.cutmix:
        return "MixUp and CutMix mix images differently in each step; without them its features would be computed once."
    changes = changing(spec.augment)
    if changes and not spec.speed.feature_views:
        return (
            f"augmentation changes the images ({changes}). Its features are computed once with --augment.preset "
            "none, or with --speed.feature-views K, of K augmented views of each image."
        )
    return ""


def changing(spec: AugmentSpec) -> str:
    """Return what augmentation does to an image at random, or an empty text."""
    text = augmentation.describe(dataclasses.replace(spec, mixup=0.0, cutmix=0.0))
    return "" if text == "none" else text


class OnFeatures(Task):
    """A task whose batches are features [B, views, ...]: one view of each, and another task's loss.

    With several views one is drawn for each image in every step.
    """

    def __init__(self, task: Task, views: int) -> None:
        super().__init__()
        self.task, self.views = task, views
        self.metrics, self.score_names, self.separable = task.metrics, task.score_names, task.separable

    def inputs(self, batch: RawBatch, generator: torch.Generator, micro: int) -> Batch:
        """See Task."""
        labels, features = batch.labels, as_tensor(batch.images)
        if self.views == 1:
            return Batch(features[:, 0], labels, labels)
        drawn = torch.randint(self.views, (batch.count,), generator=generator)
        ours = drawn[batch.start : batch.start + len(labels)].to(features.device)
        rows = torch.arange(len(labels), device=features.device)
        return Batch(features[rows, ours], labels, labels)

    def loss(self, network: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See Task."""
        return self.task.loss(network, batch)


class _Maker:
    """Computes, or finds, the features of a run."""

    def __init__(
        self,
        plan: Plan,
        prepared: setup.RunData,
        processes: Processes,
        screen: Screen,
        split: frozen.Split,
        views: int,
    ) -> None:
        self.plan, self.prepared, self.processes, self.screen = plan, prepared, processes, screen
        self.split, self.views = split, views
        self.device = processes.device
        self.augment = prepared.augment.in_order(plan.channels_last)
        self.micro = batch_that_pays(prepared.contract.size, self.device)

    def way(self) -> Way:
        """Return the way on features; they are computed if the cache does not have them."""
        plan, prepared = self.plan, self.prepared
        digest = self.split.digest()
        train = self._features(plan.train, self._augmented, self.views, digest, "training")
        val = None
        if prepared.val is not None:
            val = self._features(prepared.val, self._plain, 1, digest, "validation")

        validate = validator(val, self._first, plan.spec, self.processes, Views(), plan.task)
        known = functools.partial(self._known, val, digest)
        return Way(self.split.head, train, OnFeatures(plan.task, self.views), validate, known, val=val)

    def fitting(self) -> Way:
        """Return the way of an epoch in which a solver fits the head, on training images as evaluation sees them."""
        plan, prepared = self.plan, self.prepared
        digest = self.split.digest()
        train = self._features(self._as_evaluated(), self._plain, 1, digest, "training")
        val, validate = None, plan.validate
        if prepared.val is not None:
            val = self._features(prepared.val, self._plain, 1, digest, "validation")
        fit = fitting.HeadFit(plan, self.split.head.layer, train, val, self.device)
        head = plan.spec.input.views == "one"  # several views of an image are more than its features
        if val is not None and head:
            validate = validator(val, self._first, plan.spec, self.processes, Views(), plan.task)
        known = functools.partial(self._known, val, digest)
        return Way(self.split.head if head else plan.model, train, plan.task, validate, known, fit, val)

    def _as_evaluated(self) -> ImageSet:
        """Return the training images of the input's size; for random crops they were decoded larger."""
        plan, prepared, processes = self.plan, self.prepared, self.processes
        if not self.augment.needs_large_source:
            return plan.train
        for turn in range(
            min(processes.world, 2)
        ):  # the first process decodes, and the others read what it kept
            if processes.first == (turn == 0):
                samples = prepared.train.samples
                with self.screen.busy("Reading training images for the head", len(samples)) as busy:
                    images, _ = decoded.evaluation_images(
                        samples, prepared.contract, plan.spec.data, busy.advance
                    )
            processes.wait()
        return images

    def _first(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[:, 0].to(self.device)

    def _known(self, val: ImageSet | None, digest: str, model: torch.nn.Module) -> torch.Tensor | None:
        """Return the validation logits of a network whose frozen part is the one that made the features (see Way)."""
        if val is None or self.plan.spec.training.precision != "fp32" or self.split.digest(model) != digest:
            return None
        rows = (val.batch(np.arange(i, min(i + _CHUNK, len(val)))).pixels for i in range(0, len(val), _CHUNK))
        return torch.cat(
            [self.split.logits(model, part[:, 0].to(self.device)).float().cpu() for part in rows]
        )

    def _plain(self, batch: RawBatch, chunk: int, view: int) -> Callable[[int, int], torch.Tensor]:
        """Return a function that returns a slice of the batch as evaluation sees it."""
        return lambda start, stop: normalise(
            batch.pixels[start:stop].to(self.device), self.prepared.contract, self.plan.channels_last
        )

    def _augmented(self, batch: RawBatch, chunk: int, view: int) -> Callable[[int, int], torch.Tensor]:
        """Return a function that returns a slice of the batch as one view in training."""
        generator = torch.Generator()
        generator.manual_seed(step_seed(self.plan.spec.seed, chunk, _VIEWS_STREAM + view))
        sizes = source_sizes(batch) if self.augment.needs_large_source else None
        drawn = self.augment.draw(batch.count, sizes, generator)

        def part(start: int, stop: int) -> torch.Tensor:
            ours = slice(start, stop)
            local = None if batch.sizes is None else batch.sizes[ours]
            return self.augment.apply(batch.images[ours].to(self.device), local, drawn[ours])

        return part

    def _features(self, images: ImageSet, inputs: Any, views: int, digest: str, what: str) -> ImageSet:
        """Return the set with features in place of its images."""
        spec = self.plan.spec
        folder = Path(cache_folder(spec.data)) / "decoded"
        path = folder / self._key(images, views, digest, inputs != self._augmented)
        shape = (len(images), views, *self.split.shape)
        about = {
            "source": images.samples.root or images.samples.name,
            "purpose": f"features of {spec.model.name}, {what}",
            "images": len(images),
        }
        try:
            if self.processes.from_first(_open(path, shape) is None):
                if self.processes.first:
                    _make_way(path, 4 * math.prod(shape), spec.data.cache_limit)
                with self.screen.busy(f"Computing features of {what} images", len(images) * views) as busy:
                    self._fill(path, shape, images, inputs, about, busy.advance)
            opened = _open(path, shape)
        except OSError as error:
            raise _cannot_keep(folder, error.strerror or str(error)) from error
        if opened is None:
            raise CacheError(f"{path} was removed while it was in use; start again.")
        return _as_set(images, *opened)

    def _key(self, images: ImageSet, views: int, digest: str, plain: bool) -> str:
        """Return a hash of everything that the features depend on."""
        spec = self.plan.spec
        random = not plain and changing(spec.augment)
        wanted = {
            "format": FORMAT,
            "model": [spec.model.name, spec.model.stem, digest],
            "contract": self.prepared.contract.to_dict(),
            "computed": [
                spec.training.precision,
                self.device.type,
                self.plan.channels_last,
                torch.__version__,
            ],
            "augment": [to_dict(spec.augment), views, spec.seed] if random else [],
            "store": path.name if (path := getattr(images.store, "path", None)) else "",
        }
        total = hashlib.blake2b(json.dumps(wanted, sort_keys=True).encode(), digest_size=16)
        total.update(np.ascontiguousarray(images.rows).tobytes())
        for value in images.store.hashes[images.rows]:
            total.update(f"{value}\n".encode())
        return total.hexdigest()

    def _fill(
        self,
        path: Path,
        shape: tuple[int, ...],
        images: ImageSet,
        inputs: Any,
        about: dict[str, Any],
        advance: Callable[[int], None],
    ) -> None:
        """Compute all features into a store at ``path``, each process its share of the chunks."""
        processes = self.processes
        begun = housekeeping.begin(path.parent) if processes.first else None
        shared = processes.from_first(str(begun[0] / housekeeping.FEATURES) if begun else "")
        try:
            if processes.first:
                _reserve(shared, shape)
            processes.wait()
            values = np.lib.format.open_memmap(shared, "r+")
            count = -(-len(images) // _CHUNK)
            for chunk in range(processes.rank, count, processes.world):
                rows = np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(images)))
                for _, batch in batches(images, rows, _CHUNK):
                    self._chunk(batch, chunk, inputs, values[rows[0] : rows[-1] + 1], advance)
            values.flush()
            processes.wait()
            if begun:
                if path.exists():  # with a damaged file, which another process may have open
                    os.replace(shared, path / housekeeping.FEATURES)
                housekeeping.write_about(begun[0], about)
                housekeeping.publish(begun[0], path, begun[1])
            processes.wait()
        except BaseException:
            if begun:
                housekeeping.abandon(*begun)
            raise

    def _chunk(
        self, batch: RawBatch, chunk: int, inputs: Any, values: Any, advance: Callable[[int], None]
    ) -> None:
        """Compute a chunk's features into ``values`` [b, views, ...]."""
        for view in range(values.shape[1]):
            part = inputs(batch, chunk, view)
            start = 0
            while start < len(batch.labels):
                stop = min(start + self.micro, len(batch.labels))
                try:
                    with autocast(self.plan.spec, self.device):
                        features = self.split.trunk(part(start, stop))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    problem = str(error)
                else:
                    values[start:stop, view] = features.float().cpu().numpy()
                    advance(stop - start)
                    start = stop
                    continue
                self.micro = halved(self.micro, problem)
                release(self.device)  # outside the handler, whose traceback keeps the tensors alive


def _reserve(path: str, shape: tuple[int, ...]) -> None:
    """Write a file of zeros; raises OSError if the disk is full, which writing to a mapped file could not do."""
    np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, os.stat(path).st_size)


def _make_way(path: Path, needed: int, limit: float) -> None:
    """Remove other stores if the cache has a limit. Raises CacheError if there is no room."""
    if not housekeeping.make_room(path.parent, needed, limit):
        raise _cannot_keep(
            path.parent,
            f"they would not fit ({numerals.setting(limit)} GiB are allowed, or the disk is full)",
        )


def _cannot_keep(folder: Path, reason: str) -> CacheError:
    return CacheError(
        f"Features cannot be kept in {folder}: {reason}. Choose another folder with --data.cache-dir, make room "
        "(tellapart cache clear), or use --speed.no-features."
    )


def _open(path: Path, shape: tuple[int, ...]) -> tuple[Any, housekeeping.Lock | None] | None:
    """Return the store's values, mapped copy-on-write (torch wants writable), and its lock.

    None if it is missing or damaged.
    """
    held = housekeeping.hold(path, housekeeping.FEATURES)
    if held is False:
        return None
    try:
        values = np.load(path / housekeeping.FEATURES, mmap_mode="c")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    if values.shape != shape or values.dtype != np.float32:
        return None
    return values, held if isinstance(held, housekeeping.Lock) else None


def _as_set(images: ImageSet, values: Any, held: housekeeping.Lock | None) -> ImageSet:
    """Return the samples of ``images`` with row i of ``values`` in place of image i."""
    count = len(images)
    ones = np.ones(count, np.int32)
    store = cache.ImageStore(
        heights=ones,
        widths=ones,
        channels=1,
        hashes=images.store.hashes[images.rows],
        reasons=images.store.reasons[images.rows],
        images_NHWC=torch.from_numpy(values),
        lock=held,
    )
    return ImageSet(images.samples, store, np.arange(count))
