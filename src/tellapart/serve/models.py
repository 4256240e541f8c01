"""The models of a service: opened, replaced when their files are, closed when no request uses them.

A new file is opened and tested beside the old one; only then does it take over the name. Requests keep the model that
they began with, so none is lost. Everything but opening happens in the event loop's thread. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tellapart.contract import Card, Pixels, answers
from tellapart.errors import ArtifactError, ModelError, ServeError, TellapartError
from tellapart.runtime import Backend, open_backend
from tellapart.serve import drift
from tellapart.serve.batching import Batcher, worthwhile
from tellapart.serve.metrics import Metrics, ModelMetrics
from tellapart.serve.options import Options
from tellapart.serve.refusal import Refusal, dumps

Fingerprint = tuple[tuple[str, int, int, int], ...]
_SUFFIXES = (".safetensors", ".onnx", ".data", ".xml", ".bin", ".pt2", ".pt", ".pte", ".tflite")
_log = logging.getLogger("tellapart.serve")


class Model:
    """One opened file under a name. ``version`` counts how often the name was loaded, from 1."""

    def __init__(
        self,
        name: str,
        version: int,
        backend: Backend,
        options: Options,
        counts: ModelMetrics,
        mix: drift.ClassMix,
        max_batch: int,
    ) -> None:
        self.name, self.version, self.backend, self.counts, self.mix = name, version, backend, counts, mix
        self.users = 0
        self.retired = False
        self._options, self._max_batch = options, max_batch
        self.batcher = self._batcher(backend.logits)
        self._featured: Batcher | None = None

    @property
    def featured(self) -> Batcher:
        """What gives features after each image's logits, float32 [n, K + F]; made when it is first asked for."""
        if self._featured is None:
            self._featured = self._batcher(self._with_features)
        return self._featured

    def _batcher(self, compute: Callable[[Pixels], npt.NDArray[np.float32]]) -> Batcher:
        options = self._options
        return Batcher(
            compute,
            self.counts,
            max_batch=self._max_batch,
            max_wait=options.max_wait_ms / 1000,
            capacity=options.queue,
            instances=options.instances,
        )

    def _with_features(self, images: Pixels) -> npt.NDArray[np.float32]:
        try:
            return np.concatenate(self.backend.with_features(images), axis=1)
        except (ArtifactError, ModelError) as error:
            raise Refusal(400, "no_features", f"this model gives no features: {error}") from None

    @property
    def batchers(self) -> list[Batcher]:
        """All that compute for it."""
        return [self.batcher, *filter(None, [self._featured])]

    def close(self) -> None:
        """Take no more; what waits is computed."""
        for batcher in self.batchers:
            batcher.close()

    @property
    def card(self) -> Card:
        """The model card: what goes with the weights."""
        return self.backend.card

    def answered(self, given: answers.Answers) -> None:
        """Count the classes in a request's answers."""
        for told in given.told:
            for label in told:
                self.counts.answered(self.card.classes[label])
                if self.mix.add(label):
                    self.publish_mix()

    def publish_mix(self) -> None:
        """Pass the expected mix to the metrics."""
        if self.mix.expected is not None:
            shares = dict(zip(self.card.classes, self.mix.expected.tolist(), strict=True))
            self.counts.expects(shares, self.mix.source)

    def retire(self) -> None:
        """Close as soon as no request uses it."""
        self.retired = True
        if not self.users:
            self.close()


class Repository:
    """Models by name. The first one is the default for requests that name none."""

    def __init__(self, paths: Mapping[str, str], options: Options, metrics: Metrics) -> None:
        self._paths = {name: Path(path) for name, path in paths.items()}
        self._options, self._metrics = options, metrics
        self._models: dict[str, Model] = {}
        self._versions = dict.fromkeys(self._paths, 0)
        self._seen: dict[str, Fingerprint] = {}
        self._loading = {name: asyncio.Lock() for name in self._paths}
        self._begun = dict.fromkeys(self._paths, 0)
        self._failure: dict[str, TellapartError | None] = dict.fromkeys(self._paths)
        self._worthwhile: dict[Path, int] = {}
        self._counts = {name: metrics.for_model(name) for name in self._paths}

    @property
    def names(self) -> list[str]:
        """The models' names, the default first."""
        return list(self._paths)

    @property
    def ready(self) -> bool:
        """Whether every model can answer."""
        return len(self._models) == len(self._paths)

    def get(self, name: str | None = None) -> Model:
        """Return the model that is in use under ``name``. Raises Refusal 404, 503."""
        if name is None:
            name = next(iter(self._paths))
        if name not in self._paths:
            raise Refusal(404, "no_model", f"there is no such model; there are {', '.join(self._paths)}")
        if name not in self._models:
            raise Refusal(503, "loading", "the model is being loaded", retry_after=1)
        return self._models[name]

    @contextlib.contextmanager
    def lease(self, name: str | None = None, version: str | None = None) -> Iterator[Model]:
        """Yield a model that stays usable in this context even if it is replaced meanwhile. Raises Refusal."""
        model = self.get(name)
        if version is not None and version != str(model.version):
            raise Refusal(404, "no_version", f"the model has version {model.version} now, no other")
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1
            if model.retired and not model.users:
                model.close()

    async def load(self, name: str) -> Model:
        """Open a model's file (again) and let it take over. Raises TellapartError; an older one then stays.

        Calls during an opening all wait for one further opening.
        """
        if name not in self._paths:
            raise Refusal(404, "no_model", f"there is no such model; there are {', '.join(self._paths)}")
        begun = self._begun[name]
        async with self._loading[name]:
            if self._begun[name] == begun:
                self._begun[name] += 1
                await self._load(name)
            failure = self._failure[name]
            if failure is not None:
                raise failure.with_traceback(None)
            return self._models[name]

    async def _load(self, name: str) -> None:
        """Do what `load` promises, or note why not."""
        path = self._paths[name]
        self._seen[name] = await asyncio.to_thread(fingerprint, path)
        self._failure[name] = None
        try:
            backend, mix, max_batch = await asyncio.to_thread(self._open, path)
        except TellapartError as error:
            # Their tracebacks would keep everything that was read from the file alive.
            error.__cause__ = error.__context__ = None
            self._failure[name] = error
            return
        except Exception as error:  # whatever a damaged file makes its reader raise
            self._failure[name] = ServeError(f"{path} cannot be opened: {error!r}")
            return
        self._versions[name] += 1
        counts = self._counts[name]
        model = Model(name, self._versions[name], backend, self._options, counts, mix, max_batch)
        old = self._models.get(name)
        self._models[name] = model
        counts.loaded(model.version)
        counts.waiting(lambda: model.batcher.waiting)
        counts.drift(lambda: model.mix.drift, lambda: model.mix.by_chance)
        model.publish_mix()
        if old is not None:
            old.retire()
            del old
            await asyncio.to_thread(_give_memory_back)

    def _open(self, path: Path) -> tuple[Backend, drift.ClassMix, int]:
        """Open and test a file; return it with its class mix and largest batch. Runs in a thread of its own."""
        options = self._options
        backend = open_backend(path, options.device, options.precision, options.threads, options.trust)
        card = backend.card
        contract = card.preprocessing
        blank = np.zeros((1, *contract.sides, contract.channels), contract.depth)
        for size in {1, options.max_batch or 2}:
            logits = backend.logits(np.repeat(blank, size, axis=0))
            if len(logits) != size:
                raise ServeError(f"{path.name} gives {len(logits)} answers for {size} images.")
            values = answers.probabilities(logits, card)
        # Once, before the first request: later it would measure the requests too, and delay them.
        max_batch = options.max_batch or self._worthwhile.get(path) or worthwhile(backend.logits, blank)
        self._worthwhile[path] = max_batch
        expected, source = drift.expectation(card, path, options.class_mix)
        mix = drift.ClassMix(len(card.classes), options.drift_window, expected, source)
        try_answer(card, values, mix)
        return backend, mix, max_batch

    async def watch(self, seconds: float, notify: Callable[[str], None]) -> None:
        """Load models again whose files changed, until cancelled; a file must be unchanged for one round."""
        changing: dict[str, Fingerprint] = {}
        while True:
            await asyncio.sleep(seconds)
            for name, path in self._paths.items():
                now = await asyncio.to_thread(fingerprint, path)
                if not now or now == self._seen.get(name):
                    changing.pop(name, None)
                elif changing.get(name) != now:
                    changing[name] = now
                else:
                    await self._reload(name, notify)

    async def _reload(self, name: str, notify: Callable[[str], None]) -> None:
        try:
            model = await self.load(name)
            notify(f"{name}: version {model.version} is now in use")
        except Exception as error:  # not even a shortage of memory or threads may end the watch
            self._counts[name].reload_failed()
            notify(
                f"{name}: the new file cannot be used, version {self._versions[name]} stays in use: {error}"
            )
            _log.warning("%s cannot be loaded again: %s", name, error)

    async def close(self) -> None:
        """Compute what waits, and end."""
        for model in self._models.values():
            model.close()
        for model in self._models.values():
            for batcher in model.batchers:
                await asyncio.to_thread(batcher.join, 10)


def try_answer(card: Card, values: npt.NDArray[np.float64], mix: drift.ClassMix) -> None:
    """Do once everything that follows from probabilities [B, K]: JSON, counts, the text of the metrics.

    Whatever a name or a number in the file could break fails here, before the file takes over. Raises ServeError.
    """
    trial = Metrics()
    counts = trial.for_model("trial")
    try:
        dumps({"classes": list(card.classes), "probabilities": values.tolist()})
        for name in card.classes:
            counts.answered(name)
        if mix.expected is not None:
            counts.expects(dict(zip(card.classes, mix.expected.tolist(), strict=True)), mix.source)
        counts.drift(lambda: mix.drift, lambda: mix.by_chance)
        "\n".join(card.classes).encode("utf-8")
        trial.text()
    except (ValueError, TypeError) as error:
        raise ServeError(f"its classes or scores cannot be used in an answer: {error}") from None


def _give_memory_back() -> None:
    """Free what an old model leaves behind: its graph in reference cycles, its weights in the C library's heap."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()  # the first model is among the objects that `server.run` froze
    gc.collect()
    if frozen:
        gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def fingerprint(path: Path) -> Fingerprint:
    """Return what changes when a model's file, or one beside it with weights, is replaced; empty without any."""
    folder, start = (path, "") if path.is_dir() else (path.parent, path.stem + ".")
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            name = Path(entry.name)
            if name.suffix in _SUFFIXES and name.name.startswith(start) and entry.is_file():
                about = os.stat(entry.path)  # entry.stat() may be an older one on some systems
                found.append((entry.name, about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(sorted(found))
