"""Putting a run together: resolved spec and images in, a plan for the loop out.

Knows nothing of run folders, reports or the command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.augment import Augment
from tellapart.data.loader import ImageSet
from tellapart.data.samples import Samples
from tellapart.data.stores import images as decoded
from tellapart.data.transfer import resident_limit
from tellapart.devices import AMP_DTYPES, put, seed_device
from tellapart.errors import DataError, SpecError
from tellapart.evaluation.infer import batch_that_pays, collect_logits
from tellapart.models import heads, weights, zoo
from tellapart.preprocess import Preprocessing, Views, averaged, normalise, resize
from tellapart.spec import Spec, update
from tellapart.training import optim, resolve, sampling
from tellapart.training.callbacks import Callback
from tellapart.training.distributed import Processes
from tellapart.training.losses import build_loss
from tellapart.training.methods import distillation, infobatch, multilabel, progressive, qat, sparse
from tellapart.training.methods.ema import Ema
from tellapart.training.schedule import Schedule
from tellapart.training.step import Plan
from tellapart.training.task import Classification, Task

# Below this work for a step, oneDNN's fixed cost for each call outweighs its speed (batches of 4 in the
# tutorials' network: 5 million; plain kernels are 1.4 times faster there, and 4 times slower at batches of 16).
PLAIN_KERNELS_FLOPS = 10_000_000
# Where a GPU is done with a step (a forward pass of so many operations) about as soon as the processor has started its
# kernels, they are replayed as CUDA graphs, if there are steps enough to make up for recording.
GRAPH_FLOPS, GRAPH_STEPS = 1_000_000_000_000, 100
SEARCH_STEPS = 2000  # trying cuDNN's kernels takes 10 to 20 seconds for a network
INITIAL_IMAGES = 5000  # for models that begin from training images (whitening): as many as the paper's


@dataclass(frozen=True)
class RunData:
    """The images of a run, its spec with nothing left to choose, and its preprocessing contract."""

    spec: Spec
    contract: Preprocessing
    augment: Augment
    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    bad: tuple[decoded.Bad, ...]
    weights: weights.WeightsInfo | None
    unused_range: str = ""  # a warning: the images use a small part of the numbers that their files can hold

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.train.samples.classes

    def label_names(self, label: npt.NDArray[Any]) -> str:
        """Return what a label of a batch says: a class by index, or several by their places."""
        if not label.ndim:
            return self.classes[int(label)]
        return ", ".join(self.classes[k] for k in np.flatnonzero(label)) or "none"


def prepare(spec: Spec, samples: Samples, advance: Callable[[int], None]) -> RunData:
    """Make every choice that is left, and decode the images. Raises DataError, SpecError, ModelError."""
    if len(samples.classes) < 2:
        raise DataError(
            f"{samples.root or samples.name} has only the class {samples.classes[0]!r}; training needs two."
        )
    training = samples.split("train")
    if not len(training):
        raise DataError(f"{samples.root or samples.name} has no training images.")
    if spec.input.range == "max":
        spec = update(spec, {"input.range": f"0-{decoded.largest(training, spec.data):.17g}"})
    seen = decoded.look(training, spec.data, levels=spec.input.levels())
    spec, info = resolve.resolve(spec, samples, seen)
    contract = resolve.contract(spec.input)
    augment = Augment(spec.augment, contract, len(samples.classes), seed=spec.seed)
    if augment.needs_large_source:
        reduced = spec.input.decode != "full"
        train, bad = decoded.augmentation_sources(training, contract, spec.data, advance, reduced)
    else:
        train, bad = decoded.evaluation_images(training, contract, spec.data, advance)
    if not len(train):
        raise DataError(f"None of the {len(training)} training images can be read; the first: {bad[0]}")
    if not spec.input.mean or not spec.input.std:
        mean, std = decoded.channel_statistics(train)
        chosen = dataclasses.replace(spec.input, mean=spec.input.mean or mean, std=spec.input.std or std)
        spec = dataclasses.replace(spec, input=chosen)
        contract = resolve.contract(chosen)
        augment = Augment(spec.augment, contract, len(samples.classes), seed=spec.seed)
    bad = [*(decoded.Bad(item.path, item.reason) for item in samples.unusable), *bad]
    others: dict[str, ImageSet | None] = {}
    for split in ("val", "test"):
        part = samples.split(split)
        others[split] = None
        if len(part):
            others[split], more = decoded.evaluation_images(part, contract, spec.data, advance)
            bad += more
    for split, images in others.items():
        if images is not None and not len(images):
            raise DataError(f"None of the {split} images can be read.")
    unused = seen.unused_range() if contract.range is None else ""
    return RunData(spec, contract, augment, train, others["val"], others["test"], tuple(bad), info, unused)


def build_model(prepared: RunData) -> tuple[torch.nn.Module, zoo.Architecture, weights.WeightsInfo | None]:
    """Build the network with seeded new weights, and load the given ones."""
    spec = prepared.spec
    stem = spec.model.stem
    assert stem != "auto"
    architecture = zoo.Architecture(
        name=spec.model.name,
        num_classes=len(prepared.classes),
        channels=prepared.contract.channels,
        size=prepared.contract.size,
        dropout=spec.model.dropout,
        drop_path=spec.model.drop_path,
        batch_norm=spec.model.batch_norm,
        stem=stem,
        pruned=weights.pruned(spec.model.weights),
    )
    seed_device(torch.device("cpu"), spec.seed)
    model = zoo.build(architecture)
    info = None
    initialise = getattr(model, "initialise_from", None)
    if callable(initialise) and spec.model.weights == "none":
        initialise(initial_images(prepared))
    if spec.model.weights != "none":
        info = weights.load(model, architecture, spec.model.weights)
    elif spec.model.finetune != "full":
        raise SpecError(
            f"model.finetune is {spec.model.finetune!r}, which needs weights to start from; give --model.weights "
            "(pretrained, efficientnet-lite0, a file or a run)."
        )
    return model, architecture, info


def initial_images(prepared: RunData, count: int | None = None) -> torch.Tensor:
    """Return training images for a model that begins from some: float32 [n, C, size, size], normalised.

    At most ``count``; None: INITIAL_IMAGES. Which ones is a function of the seed, so that a resumed run and every
    process see the same.
    """
    images, contract = prepared.train, prepared.contract
    rng = np.random.Generator(
        np.random.Philox(key=np.array([prepared.spec.seed % 2**64, 2**64 - 1], np.uint64))
    )
    rows = np.sort(rng.permutation(len(images))[: INITIAL_IMAGES if count is None else count]).astype(
        np.int64
    )
    if prepared.augment.needs_large_source:  # not of the network's size yet
        pixels = [resize(images.store.image(int(images.rows[row])), contract) for row in rows]
        return normalise(torch.from_numpy(np.stack(pixels)), contract)
    return normalise(images.batch(rows).pixels, contract)


def build_task(
    prepared: RunData, model: torch.nn.Module, augment: Augment, counts: npt.NDArray[np.int64]
) -> Task:
    """Return a run's task, on the model's device; ``counts``: images of each class, for class weights, int64 [K]."""
    spec = prepared.spec
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if prepared.train.samples.targets is not None:
        return multilabel.MultiLabel(
            augment, multilabel.build_loss(spec.training, counts, len(prepared.train), device)
        )
    task = Classification(augment, build_loss(spec.training, counts, device))
    if spec.distill.teacher:
        task = distillation.Distillation(task, spec.distill, model, prepared.contract, prepared.classes)
    return task


MakeTask = Callable[[RunData, torch.nn.Module, Augment, npt.NDArray[np.int64]], Task]


def plan(
    prepared: RunData, model: torch.nn.Module, processes: Processes, make_task: MakeTask = build_task
) -> Plan:
    """Return what the loop runs; what is still open for speed (see ``speed.autotune``) is as without autotuning.

    ``make_task``: what makes the task, for one that is none of ours.
    """
    spec = settle(prepared, model, processes)
    training, device = spec.training, processes.device
    plain = device.type == "cpu" and flops(prepared, model) * training.batch_size < PLAIN_KERNELS_FLOPS
    has_convolutions = any(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    channels_last = spec.speed.channels_last and has_convolutions and not plain
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = model.to(device)
    if training.sync_batch_norm and processes.world > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    augment = Augment(spec.augment, prepared.contract, len(prepared.classes), channels_last, spec.seed)
    blocks = heads.blocks(model)
    if spec.model.freeze_blocks >= len(blocks):
        raise SpecError(
            f"model.freeze_blocks is {spec.model.freeze_blocks}; {spec.model.name} has {len(blocks)} blocks, of "
            "which one at least must train."
        )
    labels = prepared.train.samples.labels
    counts = prepared.train.samples.counts()
    if training.sampling != "shuffle":  # class weights must not favour again what sampling already balances
        counts = np.minimum(counts, 1)
    count = sampling.epoch_length(labels, training.sampling)
    if count % training.batch_size == 1 and count > 1 and _has_batch_norm(model):
        count -= (
            1  # a batch norm learns nothing from one image, or refuses it; another is left out in each epoch
        )
    steps = -(-count // training.batch_size)
    groups = optim.parameter_groups(
        model,
        blocks,
        training.weight_decay,
        spec.model.layer_decay,
        training.bias_lr / training.lr,
        training.head_lr / training.lr,
        training.early_epochs * steps,
    )
    scaler = torch.amp.GradScaler(device.type) if training.precision == "fp16" else None
    progressive.check(training, prepared.contract.size, model, prepared.contract.channels)
    infobatch.check(training, spec.augment)
    task = make_task(prepared, model, augment, counts).to(device)
    task.check(training.best_metric, training.accumulate)
    groups += optim.own_groups(task.own_parameters(), training.weight_decay)
    optimizer = optim.build_optimizer(training, groups, spec.speed.fused)
    qat.check(spec)
    if training.quantize != "none":
        qat.install(model, initial_images(prepared, qat.IMAGES))
    if training.keep_zeros:
        sparse.hold_zeros(model, optimizer)

    def inputs(batch_NHWC: torch.Tensor) -> torch.Tensor:
        return normalise(put(batch_NHWC, device), prepared.contract, channels_last)

    return Plan(
        spec=spec,
        model=model,
        blocks=blocks,
        task=task,
        optimizer=optimizer,
        schedule=Schedule(training, steps, training.epochs),
        train=_resident(prepared.train, spec, device),
        validate=validator(prepared.val, inputs, spec, processes, resolve.views(spec.input), task),
        images_per_epoch=count,
        ema=Ema(model, training.ema) if training.ema else None,
        scaler=scaler,
        plain_kernels=plain,
        channels_last=channels_last,
        graphs=spec.speed.cuda_graphs == "on" and _can_replay(spec, processes),
        search=spec.speed.kernel_search == "on" and device.type == "cuda",
        val_counts=None if prepared.val is None else prepared.val.samples.counts(),
        callbacks=_callbacks(spec, augment, len(labels), processes),
    )


def settle(prepared: RunData, model: torch.nn.Module, processes: Processes) -> Spec:
    """Return the spec with nothing left to choose, on this device and without autotuning."""
    spec = resolve.settle(prepared.spec, processes.device)
    speed, batch_size = spec.speed, spec.training.batch_size
    if processes.device.type != "cuda" or "auto" not in (speed.cuda_graphs, speed.kernel_search):
        return spec
    images = sampling.epoch_length(prepared.train.samples.labels, spec.training.sampling)
    steps = math.ceil(images / batch_size) * spec.training.epochs
    small = flops(prepared, model) * batch_size <= GRAPH_FLOPS
    chosen = {"cuda_graphs": small and steps >= GRAPH_STEPS, "kernel_search": steps >= SEARCH_STEPS}
    open_ = {name: pays for name, pays in chosen.items() if getattr(speed, name) == "auto"}
    return update(spec, {f"speed.{name}": "on" if pays else "off" for name, pays in open_.items()})


def _can_replay(spec: Spec, processes: Processes) -> bool:
    """Return whether whole steps can be CUDA graphs: one part, one process, nothing that looks into the network."""
    training = spec.training
    whole = training.accumulate == 1 and processes.world == 1 and training.precision != "fp16"
    plain = not spec.distill.teacher and training.quantize == "none"
    return processes.device.type == "cuda" and whole and plain


def _callbacks(spec: Spec, augment: Augment, images: int, processes: Processes) -> list[Callback]:
    """Return the callbacks that the spec asks for."""
    training = spec.training
    found: list[Callback] = []
    if training.start_size:
        found.append(progressive.ProgressiveSize(training, augment))
    if training.prune:
        found.append(infobatch.InfoBatch(training, images, spec.seed, processes.device, processes))
    return found


def _resident(images: ImageSet, spec: Spec, device: torch.device) -> ImageSet:
    """Return the images in the memory of a GPU, where they fit and the spec allows it."""
    return images.on_device(device, resident_limit(device)) if spec.speed.on_device else images


def _has_batch_norm(model: torch.nn.Module) -> bool:
    return any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())


def flops(prepared: RunData, model: torch.nn.Module) -> int:
    """Return the floating-point operations of one image's forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    contract = prepared.contract
    image = torch.zeros(1, contract.channels, contract.size, contract.size)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


def autocast(spec: Spec, device: torch.device) -> torch.autocast:
    """Return a context in which networks compute in the spec's precision, which is settled."""
    dtype = AMP_DTYPES[spec.training.precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def validator(
    images: ImageSet | None,
    inputs: Callable[[torch.Tensor], torch.Tensor],
    spec: Spec,
    processes: Processes,
    views: Views,
    task: Task,
) -> Callable[[torch.nn.Module], dict[str, float]] | None:
    """Return a function from a network to its validation figures, each process doing its share of the images.

    ``inputs`` turns a batch as the set gives it into what the network takes, on its device.
    """
    if images is None or not task.score_names:
        return None
    images = _resident(images, spec, processes.device)
    samples = images.samples
    labels = torch.from_numpy(samples.labels if samples.targets is None else samples.targets)
    ours = np.array_split(np.arange(len(images)), processes.world)[processes.rank]
    batch_size = batch_that_pays(spec.input.size, processes.device)

    def validate(model: torch.nn.Module) -> dict[str, float]:
        model.eval()

        @torch.inference_mode()
        def predict(batch: torch.Tensor) -> torch.Tensor:
            network_inputs = inputs(batch)
            with autocast(spec, processes.device):
                return averaged(model, network_inputs, views)

        parts = processes.gather(collect_logits(predict, images, ours, batch_size))
        return task.scores(torch.cat([part for part in parts if len(part)]), labels)

    return validate
