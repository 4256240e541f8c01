"""Prediction: from files, folders, patterns, standard input or arrays to labels and probabilities.

Uses the artifact's own preprocessing contract and nothing of training. A bad image gives a prediction with an
error in it, after which the others go on.
"""

from __future__ import annotations

import concurrent.futures
import glob
import http.client
import itertools
import os
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tellapart import files, runtime
from tellapart.contract import BadImage, Card, Pixels, answers
from tellapart.contract.given import content_of, is_picture
from tellapart.data.sources.folders import walk
from tellapart.errors import SpecError, UserError
from tellapart.references import Trust
from tellapart.runtime import Backend

_BATCH = 64
_URL_SECONDS = 30
_URL_BYTES = 100 << 20


@dataclass(frozen=True)
class Prediction:
    """One image's answer: the most probable classes, best first; or why there is none."""

    path: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    told: tuple[answers.Told, ...] | None = None
    """If an image can have several labels: those that reach their thresholds, best first; otherwise None."""
    expected_grade: float | None = None
    """Of grades: their mean by probability (see `tellapart.contract.answers.Answer`)."""
    levels: tuple[answers.AtLevel, ...] = ()
    """If the class names have levels: the answer at each above the classes, the topmost first."""

    @property
    def label(self) -> str:
        """The most probable class; with several labels the first of them, or an empty text."""
        names = self.labels if self.told is None else [one.label for one in self.told]
        return names[0] if names else ""

    @property
    def probability(self) -> float:
        """The probability of ``label``, 0 to 1."""
        values = self.probabilities if self.told is None else [one.probability for one in self.told]
        return values[0] if values else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: path, label, probability, top (or error); for several labels path, labels, top.

        Of grades also ``expected_grade``; with levels in the names of classes also levels: level, label, probability
        and agrees of each.
        """
        if self.error:
            return {"path": self.path, "error": self.error}
        answer = answers.Answer(self.labels, self.probabilities, self.told, self.expected_grade, self.levels)
        return {"path": self.path, **answer.to_dict()}


def expand(inputs: Sequence[str], urls: bool = False) -> Iterator[str]:
    """Yield image paths (or URLs) for files, folders, patterns and "-" (standard input).

    Folders give the files in them with an image's suffix, sorted, at any depth, hidden ones left out. Raises
    UserError for a path that does not exist, a pattern without a match and, unless allowed, a URL.
    """
    for given in inputs:
        if given.startswith(("http://", "https://")):
            if not urls:
                raise UserError(f"{given} is a URL; nothing is fetched unless --urls is given.")
            yield given
        elif os.path.isdir(given):
            inside = sorted(_walk(given))
            if not inside:
                raise UserError(f"There are no images in the folder {given}.")
            yield from inside
        elif given == "-" or os.path.lexists(given):
            yield given
        elif glob.has_magic(given):
            found = glob.glob(given, recursive=True)  # noqa: PTH207 - pathlib has no absolute patterns
            matches = sorted(path for path in found if os.path.isfile(path))
            if not matches:
                raise UserError(f"No file matches {given!r}.")
            yield from matches
        else:
            raise UserError(f"There is no file or folder {given!r}.")


def _walk(folder: str) -> Iterator[str]:
    """Yield what training would take for an image, by extension or content; no pipes, no endless links."""
    tree = walk.walk(folder, lambda note: None)
    return (os.path.join(folder, path) for path in tree.images)


def _fetch(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "tellapart"})
        with urllib.request.urlopen(request, timeout=_URL_SECONDS) as answer:
            content: bytes = answer.read(_URL_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BadImage(f"cannot be fetched: {getattr(error, 'reason', error)}") from None
    if len(content) > _URL_BYTES:
        raise BadImage(f"is larger than {_URL_BYTES >> 20} MiB")
    return content


class Classifier:
    """A model that is ready to answer; ``tellapart.load(path)`` gives one."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def card(self) -> Card:
        """All that goes with the weights: classes, preprocessing, scores, ..."""
        return self.backend.card

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.card.classes

    def _prepared(self, image: Any) -> Pixels:
        contract = self.card.preprocessing
        return self.backend.prepare(_content(image, contract.range is not None, contract.depth))

    def probabilities(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for images: paths, bytes, Pillow images, arrays [H, W(, C)] or tensors [C, H, W].

        Raises BadImage for one that cannot be read.
        """
        pixels = np.stack([self._prepared(image) for image in images])
        return answers.probabilities(self.backend.logits(pixels), self.card).astype(np.float32)

    def features(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return what the last layer gets, float32 [B, F], for images as `probabilities` takes them.

        Raises BadImage for one that cannot be read, and ArtifactError for an exported file without features.
        """
        return self.backend.features(np.stack([self._prepared(image) for image in images]))

    def predict(self, images: Any, top: int = 1) -> list[Prediction]:
        """Return a prediction for each image: path, bytes, Pillow image, array or tensor, or several of them."""
        single = isinstance(images, (str, os.PathLike)) or is_picture(images)
        if getattr(images, "ndim", 0) == 4:
            single = False
        return list(self.stream([images] if single else images, top))

    def stream(
        self,
        images: Iterable[Any],
        top: int = 1,
        stdin: Callable[[], BinaryIO] | None = None,
        features: Features | None = None,
    ) -> Iterator[Prediction]:
        """Yield predictions in order, holding one batch in memory at a time; ``features`` collects these too."""

        def prepare(image: Any) -> tuple[str, Pixels | None, str]:
            name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
            try:
                if name == "-" and stdin is not None:
                    return name, self.backend.prepare(stdin().read()), ""
                return name, self._prepared(image), ""
            except BadImage as error:
                return name, None, error.reason
            except OSError as error:
                return name, None, f"cannot be read: {error.strerror or error}"

        pending = iter(images)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            while chunk := list(itertools.islice(pending, _BATCH)):
                yield from self._answer(list(pool.map(prepare, chunk)), top, features)

    def _answer(
        self, prepared: list[tuple[str, Pixels | None, str]], top: int, features: Features | None
    ) -> Iterator[Prediction]:
        good = [(name, pixels) for name, pixels, _ in prepared if pixels is not None]
        told: Iterator[answers.Answer] = iter(())
        if good:
            images = np.stack([pixels for _, pixels in good])
            if features is None:
                logits = self.backend.logits(images)
            else:
                logits, found = self.backend.with_features(images)
                features.add([name for name, _ in good], found, logits)
            told = answers.of(logits, self.card).top(top)
        for name, pixels, reason in prepared:
            if pixels is None:
                yield Prediction(name, error=reason)
                continue
            answer = next(told)
            yield Prediction(
                name,
                answer.labels,
                answer.probabilities,
                told=answer.told,
                expected_grade=answer.expected_grade,
                levels=answer.levels,
            )


def load(
    path: str | os.PathLike[str], device: str = "auto", trust: Trust = False, model: Any = None
) -> Classifier:
    """Open a model or an exported file: ``tellapart.load(path).predict(images)``.

    Args:
        path: run folder, artifact or exported file; only the format of the file decides whether torch is loaded.
        device: auto, cpu, cuda, cuda:N or mps; for an ONNX file auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N.
        trust: True: open a ``.pt2`` or TorchScript file also where tellapart did not write it here: such files are
            programs. Names of packages: import these for an artifact whose network is not tellapart's (True: any).
        model: that network itself, or what makes it.

    Raises ArtifactError, ModelError, MissingPackageError, SpecError.
    """
    if not runtime.is_export(path):
        from tellapart.devices import choose_device  # loads torch

        device = str(choose_device(device))
    return Classifier(runtime.open_backend(path, device, trust=trust, model=model))


def predict(
    path: str | os.PathLike[str],
    images: Any,
    *,
    top: int = 1,
    features: str | os.PathLike[str] = "",
    urls: bool = False,
    device: str = "auto",
    trust: Trust = False,
    model: Any = None,
) -> list[Prediction]:
    """Label images, in order; one that cannot be read has ``error`` set, and the others go on.

    Args:
        path: run folder, artifact or exported file. For many calls, `load` it once.
        images: a file, folder or pattern, an image (bytes, of Pillow, array [H, W(, C)], tensor [C, H, W]), or several.
        top: how many classes to give for each image.
        features: a new .npz file for what the last layer gets: paths, features, logits and classes.
        urls: fetch http(s) addresses; nothing is fetched otherwise.
        device: as for `load`.
        trust: as for `load`.
        model: as for `load`.

    Raises: errors of ``tellapart.errors``.
    """
    if top < 1:
        raise SpecError(f"top is {top}; it must be at least 1.")
    if features:
        check_features_file(features)
    alone = isinstance(images, (str, os.PathLike)) or (is_picture(images) and getattr(images, "ndim", 0) != 4)
    wanted: list[Any] = []
    for one in [images] if alone else images:
        wanted += expand([os.fspath(one)], urls) if isinstance(one, (str, os.PathLike)) else [one]
    classifier = load(path, device, trust, model)
    kept = Features() if features else None
    found = list(classifier.stream(wanted, top, lambda: sys.stdin.buffer, kept))
    if kept is not None:
        kept.write(features, classifier.classes)
    return found


class Features:
    """The features of many images with their paths and logits, for a file; images that cannot be read are not in it."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._features: list[npt.NDArray[np.float32]] = []
        self._logits: list[npt.NDArray[np.float32]] = []

    def add(
        self, paths: Sequence[str], features: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]
    ) -> None:
        """Take a batch: n paths, float32 [n, F] and [n, K]."""
        self._paths += paths
        self._features.append(features)
        self._logits.append(logits)

    def write(self, path: str | os.PathLike[str], classes: Sequence[str]) -> None:
        """Write ``paths`` [N], ``features`` [N, F], ``logits`` [N, K], ``classes`` [K] as .npz. Raises WriteError."""
        empty = np.zeros((0, 0), np.float32)
        check_features_file(path)
        with files.replacing(path) as beside, open(beside, "wb") as stream:
            np.savez(
                stream,
                paths=np.array(self._paths, dtype=np.str_),
                features=np.concatenate(self._features) if self._features else empty,
                logits=np.concatenate(self._logits) if self._logits else empty,
                classes=np.array(list(classes), dtype=np.str_),
            )


def check_features_file(path: str | os.PathLike[str]) -> None:
    """Raise UserError where features cannot be written to a new file of that name."""
    target = Path(path)
    if target.suffix.lower() != ".npz":
        raise UserError(f"--features is {target}; it must be the name of a new .npz file.")
    if os.path.lexists(target):
        raise UserError(f"{target} exists, and is not overwritten; choose another name for --features.")
    if not target.parent.is_dir():
        raise UserError(f"--features is {target}, but there is no folder {target.parent}.")


def _content(image: Any, ranged: bool, depth: str) -> bytes | Pixels:
    """Return an image's encoded bytes or its pixels (see `content_of`)."""
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        return _fetch(name) if name.startswith(("http://", "https://")) else Path(name).read_bytes()
    if is_picture(image):
        return content_of(image, ranged, depth)
    raise TypeError(
        f"an image is a path, bytes, a Pillow image, an array or a tensor, not {type(image).__name__}"
    )
