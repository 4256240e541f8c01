"""What choices depend on, gathered in one place: the images, the weights, the pixels, the device.

Knows nothing of the rules.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tellapart import artifact
from tellapart.data.loader import ImageSet
from tellapart.data.samples import Samples
from tellapart.data.stores import images as decoded
from tellapart.data.stores import thumbs
from tellapart.models import weights, zoo
from tellapart.spec import DataSpec, ModelSpec, Spec
from tellapart.training.resolution import mirroring
from tellapart.training.resolution.mirroring import Mirroring


def _unmeasured() -> None:
    return None


@dataclass(frozen=True)
class DataFacts:
    """What is known about the training images, a few of which were looked at.

    ``mirroring``: a function that measures it, for it decodes some hundred images; called only where a rule asks.
    """

    seen: decoded.Look
    train: int  # how many there are
    name: str = ""  # of a known data set
    several: bool = False  # whether an image can have several labels
    largest: float | None = None  # value in images of more than 8 bits, if the range is taken from them
    grades: tuple[str, ...] = ()  # the classes in their order, the lowest first, if they have one
    validated: int = 0  # how many of the classes have a validation image
    classes: tuple[str, ...] = ()  # their names
    counts: tuple[int, ...] = ()  # training images of each
    mirroring: Callable[[], Mirroring | None] = field(default=_unmeasured, compare=False)


@dataclass(frozen=True)
class ModelFacts:
    """What the weights and the architecture say."""

    name: str
    info: weights.WeightsInfo | None

    @property
    def default_size(self) -> int | None:
        """The architecture's own size; None if it has none. Looking it up may import a library, so it comes last."""
        return zoo.default_size(self.name)


@dataclass(frozen=True)
class TeacherFacts:
    """The teacher's file (or the folder of several), a SHA-256 of the file or of all files, and how many there are."""

    file: Path
    digest: str
    count: int = 1


@dataclass(frozen=True)
class PixelFacts:
    """Statistics of the decoded training images, by channel, in a range from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DeviceFacts:
    """Where the run computes and how much work there is.

    ``images``: of an epoch. ``flops``: of one image's forward pass; counted only where a rule asks.
    """

    kind: str
    images: int
    flops: Callable[[], int]

    def steps(self, spec: Spec) -> int:
        """Return the optimizer's steps of the whole run."""
        return math.ceil(self.images / spec.training.batch_size) * spec.training.epochs


@dataclass(frozen=True)
class Facts:
    """The facts behind the choices so far; facts of later stages are None."""

    data: DataFacts | None = None
    model: ModelFacts | None = None
    teacher: TeacherFacts | None = None
    pixels: PixelFacts | None = None


def of_data(spec: Spec, samples: Samples) -> DataFacts:
    """Look at the training images (all of them if ``input.range`` is max). Raises DataError."""
    training = samples.split("train")
    largest, levels = None, spec.input.levels()
    if spec.input.range == "max":
        largest = decoded.largest(training, spec.data, spec.input.channels)
        levels = (0.0, largest)
    depth = "float32" if spec.input.depth == "float32" else "uint8"
    seen = decoded.look(training, spec.data, levels=levels, channels=spec.input.channels, depth=depth)
    grades = samples.classes if samples.ordered else ()
    validated = int((samples.counts("val") > 0).sum())
    several = samples.targets is not None
    counts = tuple(training.counts().tolist())
    measure = functools.cache(lambda: _mirroring(training, spec.data, levels))
    return DataFacts(
        seen,
        len(training),
        samples.name,
        several,
        largest,
        grades,
        validated,
        samples.classes,
        counts,
        _unmeasured if several else measure,
    )


def _mirroring(training: Samples, spec: DataSpec, levels: tuple[float, float] | None) -> Mirroring | None:
    """Measure whether mirrored training images are others; None where too few can be read."""
    rows = thumbs.rows_of_classes(training.labels, mirroring.MOST)
    pictures, kept = thumbs.thumbnails(training, spec, rows, mirroring.SIDE, levels)
    return mirroring.measure(pictures, training.labels[kept])


def of_model(spec: ModelSpec) -> ModelFacts:
    """Read what the weights say about themselves; the model has been chosen. Raises ModelError."""
    return ModelFacts(spec.name, weights.describe(spec.name, spec.weights))


def of_pixels(train: ImageSet) -> PixelFacts:
    """Measure the decoded training images."""
    return PixelFacts(*decoded.channel_statistics(train))


def of_teacher(path: str) -> TeacherFacts | None:
    """Find a teacher's file, or files, and hash them; None if there is no teacher. Raises ArtifactError."""
    if not path:
        return None
    given = Path(path).expanduser()
    found = artifact.find_all(given)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in found]
    if len(found) == 1:
        return TeacherFacts(found[0], digests[0])
    return TeacherFacts(given, hashlib.sha256("\n".join(digests).encode()).hexdigest(), len(found))
