"""Distillation: a task that follows a teacher's answers beside the labels.

Soft labels: how far both networks' softened answers are apart, times the square of the temperature (Hinton et al. 2015,
"Distilling the Knowledge in a Neural Network"): the Kullback-Leibler divergence of the one distribution, or of each
class's own where an image can have several labels (`Labelled.follow`). Features: the squared distance
between normalised attention maps, the mean square over the channels at each position, at the end of each resolution
that both networks have (Zagoruyko and Komodakis 2017, "Paying More Attention to Attention"); it has no parameters of
its own, so the artifact and the checkpoints are those of any other training.

Several teachers answer together: the mean of their probabilities at that temperature (Hinton et al. name the arithmetic
and the geometric mean; docs/architecture.md has the measurement).

The teacher sees the same images as the student, augmented and mixed. Its answers are a function of those, so a resumed
run computes what the uninterrupted one would have. Knows nothing of the loop, and nothing of how the teacher was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tellapart import artifact
from tellapart.contract import Card
from tellapart.errors import ModelError
from tellapart.preprocess import Preprocessing
from tellapart.spec import DistillSpec
from tellapart.training import losses
from tellapart.training.methods import multilabel
from tellapart.training.task import Batch, Labelled

_LABELS = {False: "one label", True: "several labels"}
_SAME_RESOLUTION = 2**0.5  # maps are compared if their sides, relative to the image's, differ by less


class Teacher(nn.Module):
    """A trained model that answers for the student's inputs."""

    def __init__(
        self,
        path: str,
        contract: Preprocessing,
        classes: Sequence[str],
        device: torch.device,
        several: bool = False,
    ) -> None:
        super().__init__()
        predictor = artifact.open_model(Path(path).expanduser(), device)
        self.model, card = predictor.model, predictor.card
        if card.several != several:
            raise ModelError(
                f"The teacher {path} gives {_LABELS[card.several]} for an image, and the images of this data have "
                f"{_LABELS[several]}: its "
                "probabilities do not mean what the student's do. Use a teacher that was trained on such labels."
            )
        if set(card.classes) != set(classes):
            only = sorted(set(card.classes) ^ set(classes))
            raise ModelError(
                f"The teacher {path} and the data have different classes: {', '.join(only[:8])} "
                f"{'are' if len(only) > 1 else 'is'} in only one of the two."
            )
        self.order = torch.tensor([card.classes.index(name) for name in classes], device=device)
        theirs = card.preprocessing
        if theirs.channels != contract.channels and contract.channels != 1:
            raise ModelError(
                f"The teacher {path} takes images of {theirs.channels} channels, and this model takes "
                f"{contract.channels} (input.channels)."
            )
        self.sides = theirs.sides
        self.scale, self.bias = _change(contract, theirs, device)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def inputs(self, images: Tensor) -> Tensor:
        """Return the teacher's inputs for the student's: float32 [B, C, H, W], normalised, at the teacher's size."""
        images = images * self.scale + self.bias  # grey images become three channels here
        if tuple(images.shape[2:]) != self.sides:
            images = F.interpolate(images, self.sides, mode="bilinear", antialias=True)
        return images

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, K], of the student's classes in its order, for the student's inputs."""
        logits: Tensor = self.model(self.inputs(images))
        return logits.float()[:, self.order]


class Ensemble(nn.Module):
    """Several trained models that answer together for the student's inputs: the mean of their probabilities.

    They may differ in their networks and in how images are normalised, in nothing else that an answer depends on.
    Raises ModelError if they do.
    """

    def __init__(
        self,
        files: Sequence[Path],
        contract: Preprocessing,
        classes: Sequence[str],
        device: torch.device,
        several: bool,
        temperature: float,
    ) -> None:
        super().__init__()
        cards = [artifact.read_card(file) for file in files]
        for file, card in zip(files, cards, strict=True):
            if different := _different(cards[0], card):
                raise ModelError(
                    f"The models in {Path(file).parent.parent} cannot teach together: {Path(file).parent.name} has "
                    f"{different}, unlike {Path(files[0]).parent.name}."
                )
        self.members = nn.ModuleList(Teacher(str(file), contract, classes, device, several) for file in files)
        self.temperature, self._average = temperature, multilabel.average if several else losses.average

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, K], as `Teacher` does."""
        return self._average(torch.stack([member(images) for member in self.members]), self.temperature)


def _different(one: Card, other: Card) -> str:
    """Return in words the first thing in which two models' answers or inputs differ, "" for none."""
    if one.several != other.several:
        return f"{_LABELS[other.several]} for an image"
    if set(one.classes) != set(other.classes):
        return f"other classes ({', '.join(sorted(set(one.classes) ^ set(other.classes))[:8])})"
    if (one.levels, one.ordered) != (other.levels, other.ordered):
        return "classes with other levels" if one.levels != other.levels else "classes that are grades or not"
    ours, theirs = (card.preprocessing.to_dict() for card in (one, other))
    for name in {**ours, **theirs}:
        if name not in ("mean", "std") and ours.get(name) != theirs.get(name):
            return f"another {name} of its images ({theirs.get(name)}, not {ours.get(name)})"
    return ""


def open_teacher(
    spec: DistillSpec,
    contract: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    several: bool = False,
) -> Teacher | Ensemble:
    """Open what ``distill.teacher`` names. Raises ArtifactError, ModelError."""
    given = Path(spec.teacher).expanduser()
    found = artifact.find_all(given)
    if len(found) == 1:
        return Teacher(str(found[0]), contract, classes, device, several)
    if spec.features:
        raise ModelError(
            f"distill.features compares two networks, and {given} contains {len(found)} models; set distill.features "
            "0, or name one of them."
        )
    return Ensemble(found, contract, classes, device, several, spec.temperature)


def _change(ours: Preprocessing, theirs: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scale and bias, float32 [C, 1, 1], that turn the student's normalisation into the teacher's."""
    mean, std, mean2, std2 = (
        torch.tensor(v, dtype=torch.float64) for v in (ours.mean, ours.std, theirs.mean, theirs.std)
    )
    terms = (std / std2, (mean - mean2) / std2)
    scale, bias = (term.float().view(-1, 1, 1).to(device) for term in terms)
    return scale, bias


class Distillation(Labelled):
    """A task with labels, and a teacher's answers beside them."""

    on_features = False
    not_saved = ("teacher",)  # the spec has its file and the file's hash

    def __init__(
        self,
        labels: Labelled,
        spec: DistillSpec,
        student: nn.Module,
        contract: Preprocessing,
        classes: Sequence[str],
    ) -> None:
        super().__init__(labels.augment, labels.criterion)
        device = next(student.parameters()).device
        self.spec = spec
        self.separable, self.metrics = labels.separable, labels.metrics
        self.score_names, self.lower_is_better = labels.score_names, labels.lower_is_better
        self._labels = (labels,)  # in a tuple: what it owns is this task's, and in checkpoints once
        several = isinstance(labels, multilabel.MultiLabel)
        self.teacher = open_teacher(spec, contract, classes, device, several)
        self.attention: Attention | None = None
        if isinstance(self.teacher, Teacher) and spec.features:
            example = torch.zeros(1, contract.channels, *contract.sides, device=device)
            self.attention = Attention(student, self.teacher.model, example, self.teacher.inputs(example))

    def loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See Task."""
        compared = self.attention.watch() if self.attention else contextlib.nullcontext()
        with compared as distance:
            taught = self.teacher(batch.images)
            logits = network(batch.images)
        weight = self.spec.weight
        loss = weight * self.follow(logits, taught, self.spec.temperature)
        if weight < 1:
            loss = loss + (1 - weight) * self.by_labels(logits, batch)
        if distance is not None:
            loss = loss + self.spec.features * distance()
        return loss, {self.metrics[0]: self.counted(logits, batch)}

    def counted(self, logits: Tensor, batch: Batch) -> Tensor:
        """See Labelled."""
        return self._labels[0].counted(logits, batch)

    def follow(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """See Labelled."""
        return self._labels[0].follow(logits, taught, temperature)

    def scores(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """See Task."""
        return self._labels[0].scores(outputs, labels)


def attention_map(maps: Tensor, side: tuple[int, int] | None = None) -> Tensor:
    """Return where a layer is active: maps [B, C, H, W] -> float32 [B, H * W], of length 1; averaged to ``side``."""
    places = maps.float().square().mean(1, keepdim=True)
    if side is not None and places.shape[2:] != side:
        places = F.adaptive_avg_pool2d(places, side)
    return F.normalize(places.flatten(1), dim=1)


class Attention:
    """The distance between two networks' attention maps, at the end of each resolution that both have."""

    def __init__(self, student: nn.Module, teacher: nn.Module, ours: Tensor, theirs: Tensor) -> None:
        self.pairs = pairs(
            last_maps(student, ours), last_maps(teacher, theirs), ours.shape[-1], theirs.shape[-1]
        )
        if not self.pairs:
            raise ModelError(
                "distill.features compares maps of one resolution, and the two networks have none in common; set "
                "distill.features 0."
            )
        self.student, self.teacher = student, teacher

    @contextlib.contextmanager
    def watch(self) -> Iterator[Callable[[], Tensor]]:
        """Record what both networks compute inside; the yielded function then returns the distance, float32 [B]."""
        seen: dict[tuple[bool, int], Tensor] = {}
        with contextlib.ExitStack() as stack:
            for number, pair in enumerate(self.pairs):
                for ours, network, path in ((True, self.student, pair[0]), (False, self.teacher, pair[1])):
                    stack.enter_context(_noted(network.get_submodule(path), seen, (ours, number), pair[2]))

            def distance() -> Tensor:
                parts = [
                    (seen[True, number] - seen[False, number]).square().sum(1)
                    for number in range(len(self.pairs))
                ]
                return torch.stack(parts).sum(0)

            yield distance


@contextlib.contextmanager
def _noted(
    module: nn.Module, seen: dict[tuple[bool, int], Tensor], key: tuple[bool, int], side: int
) -> Iterator[None]:
    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        height, width = output.shape[2:]
        seen[key] = attention_map(output, (min(side, height), min(side, width)))

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def last_maps(model: nn.Module, images: Tensor) -> dict[int, str]:
    """Return, by side in pixels, the path of the last module that outputs square maps [B, C, side, side]."""
    found: dict[int, str] = {}

    def note(path: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
                found[int(output.shape[2])] = path

        return hook

    handles = [m.register_forward_hook(note(path)) for path, m in model.named_modules() if path]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def pairs(
    ours: dict[int, str], theirs: dict[int, str], size: int, their_size: int
) -> list[tuple[str, str, int]]:
    """Return (student's module, teacher's, side on which both are compared) for each resolution in common."""
    found = []
    for side, path in ours.items():
        part = side / size
        if not theirs:
            break
        near = min(theirs, key=lambda other: max(part * their_size / other, other / part / their_size))
        ratio = part * their_size / near
        if max(ratio, 1 / ratio) < _SAME_RESOLUTION:
            found.append((path, theirs[near], min(side, near)))
    return found
