"""The artifact: one ``model.safetensors`` with plain weights and, as metadata, all that serving needs.

Any program can read the weights as a state dict. The file's metadata key ``tellapart`` holds JSON:
architecture, class names, preprocessing contract, scores, the weights' licence, versions. Never a pickle.
Knows nothing of training.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from tellapart import files, references, runs
from tellapart.contract import Card, Preprocessing
from tellapart.contract.sides import words
from tellapart.devices import AMP_DTYPES, put
from tellapart.errors import ArtifactError
from tellapart.models import zoo
from tellapart.models.features import Capture
from tellapart.preprocess import averaged, normalise
from tellapart.references import Trust

FILE_NAME = "model.safetensors"
_USUAL = 1024  # pixels of a side, or sixteenths of classes, up to which a network's memory is that of its own layers
LAST_NAME = "last.safetensors"  # the last epoch's weights, where FILE_NAME has the chosen one's
STATE_DICTS = (".pth", ".pt", ".bin", ".tar", ".ckpt")


def save(path: Path, state: Mapping[str, torch.Tensor], card: Card) -> None:
    """Write the artifact, complete or not at all. Raises WriteError."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    with files.replacing(path) as beside:
        safetensors.torch.save_file(plain, beside, metadata={"tellapart": card.to_json()})


def find(path: str | os.PathLike[str]) -> Path:
    """Return the artifact's file for a run folder or a file. Raises ArtifactError if there is none."""
    given = Path(path)
    found = given / FILE_NAME if given.is_dir() else given
    if not found.is_file():
        if given.is_dir() and (listed := runs.series_file(given)):
            first = (runs.read_json(listed).get("runs") or ["fold-1"])[0]
            raise ArtifactError(
                f"{given} contains several runs ({listed.name}), each with its own model; name one of them, such as "
                f"{given / first}."
            )
        what = f"the folder {given} has no {FILE_NAME} in it" if given.is_dir() else f"{given} does not exist"
        raise ArtifactError(f"No model: {what}. A model is a run folder or a {FILE_NAME} file.")
    return found


def find_all(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files of the models that a folder of several runs contains, else the one that `find` finds.

    Raises ArtifactError if there is none, or if some of the runs are not finished.
    """
    given = Path(path)
    listed = None if (given / FILE_NAME).is_file() or not given.is_dir() else runs.series_file(given)
    if listed is None:
        return (find(given),)
    content = runs.read_json(listed)
    done = [str(entry.get("run")) for entry in content.get("finished") or ()]
    names = [str(name) for name in content.get("runs") or ()]
    if not names or set(names) - set(done):
        raise ArtifactError(
            f"{given} contains {len(names)} runs ({listed.name}), of which {len(done)} are finished, so they are no "
            f"model together yet; to go on with them: tellapart resume {given}"
        )
    return tuple(find(given / name) for name in names)


def read_card(path: str | os.PathLike[str]) -> Card:
    """Read what an artifact says of itself, without its weights."""
    found = find(path)
    if found.suffix.lower() in STATE_DICTS:
        raise ArtifactError(
            f"{found} is a state dict or a trainer's checkpoint: tensors by name, without the network, the names of "
            f"the classes and how images are prepared. Make a model of it: tellapart import {found} --model.name NAME "
            "--classes A,B,… --out model.safetensors"
        )
    try:
        with safetensors.safe_open(found, framework="pt") as stream:
            metadata = stream.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{found} cannot be read as safetensors: {error}") from None
    if "tellapart" not in metadata:
        raise ArtifactError(
            f"{found} holds weights but not what tellapart needs with them (classes, preprocessing). "
            f"To start training from it, use: tellapart train DATA --model.weights {found}; "
            "to make a model of it: tellapart import"
        )
    try:
        return Card.from_json(metadata["tellapart"])
    except ValueError as error:
        raise ArtifactError(f"The description inside {found} cannot be used: {error}") from None


def read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read an artifact's weights as a state dict."""
    state: dict[str, torch.Tensor] = safetensors.torch.load_file(find(path))
    return state


class Predictor:
    """The seam that every backend opens to: images [B, height, width, C] -> float32 logits [B, K]."""

    def __init__(
        self, model: torch.nn.Module, card: Card, device: torch.device, precision: str = "fp32"
    ) -> None:
        self.card = card
        self._amp = AMP_DTYPES[precision]
        self.device = device
        self.model = model.eval().to(device)
        self._capture: Capture | None = None
        self._capturing = threading.Lock()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.card.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """The contract by which files become this model's input."""
        return self.card.preprocessing

    @torch.inference_mode()
    def __call__(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 [B, K] on the CPU, averaged over the card's views.

        images_NHWC: of the contract's size and depth.
        """
        return self._averaged(self.model, images_NHWC)

    @torch.inference_mode()
    def with_features(self, images_NHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [B, K] and features [B, F], float32 on the CPU, of one run of the network.

        images_NHWC: of the contract's size and depth. Features are the input of the last layer, averaged over the
        card's views as the logits are. Raises ModelError for a network without a last layer that runs once.
        """
        with self._capturing:
            self._capture = capture = self._capture or Capture(self.model)
        both = self._averaged(capture.joint, images_NHWC, len(self.classes))
        return both[:, : len(self.classes)], both[:, len(self.classes) :]

    def features(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        """Return the features alone (see `with_features`): float32 [B, F] on the CPU."""
        return self.with_features(images_NHWC)[1]

    def _averaged(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        images_NHWC: torch.Tensor,
        classes: int | None = None,
    ) -> torch.Tensor:
        images = normalise(put(images_NHWC, self.device), self.preprocessing, channels_last=True)
        with torch.autocast(self.device.type, self._amp, enabled=self._amp is not None):
            return averaged(network, images, self.card.views, classes).cpu()


def open_model(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    *,
    trust: Trust = False,
    model: Any = None,
) -> Predictor:
    """Load an artifact (a run folder or a file) for prediction, in fp32, bf16 or fp16 (by torch's autocast).

    ``trust``: packages that may be imported for a network that is not tellapart's, or True; ``model``: that network
    itself, or what makes it. Raises ArtifactError, ModelError.
    """
    card = read_card(path)
    if model is not None:
        with references.providing({("model", card.architecture.name): model}):
            return open_model(path, device, precision)
    if references.is_reference(card.architecture.name):
        references.trust(trust, card.architecture.name)
        if not references.is_provided("model", card.architecture.name):
            references.require(card.architecture.name, str(find(path)))
    if max(*card.architecture.sides, card.architecture.num_classes // 16) > _USUAL:
        _check_shapes(path, card)
    network = zoo.build(card.architecture)
    try:
        network.load_state_dict(read_state(path))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"The weights in {find(path)} do not fit {card.architecture.name}: {error}"
        ) from None
    _check_numbers(find(path), network)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Predictor(network, card, torch.device(device), precision)


def _check_shapes(path: str | os.PathLike[str], card: Card) -> None:
    """Raise ArtifactError if the file does not have the weights of its network, before memory is allocated for it.

    A card with an unusual size could otherwise request any amount. Networks that cannot be built without memory are
    left to `open_model`; theirs does not grow much with the size.
    """
    try:
        with torch.device("meta"):
            wanted = {
                name: list(value.shape) for name, value in zoo.build(card.architecture).state_dict().items()
            }
    except (RuntimeError, NotImplementedError):  # by torch, for what needs values
        return
    with safetensors.safe_open(find(path), framework="pt") as stream:
        found = {name: list(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    if found != wanted:
        name = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise ArtifactError(
            f"The weights in {find(path)} do not fit {card.architecture.name} for {card.architecture.num_classes} "
            f"classes and {words(card.architecture.size)} pixels: "
            f"{name[:80]} is {found.get(name)}, not {wanted.get(name)}."
        )


def _check_numbers(path: Path, model: torch.nn.Module) -> None:
    """Raise ArtifactError for a network whose weights cannot give an answer: NaN, or infinite where they multiply."""
    for values, broken in ((model.named_parameters(), "nan or inf"), (model.named_buffers(), "nan")):
        for name, value in values:
            wrong = ~torch.isfinite(value) if broken == "nan or inf" else torch.isnan(value)
            if bool(wrong.any()):
                raise ArtifactError(f"The weights in {path} are not numbers ({broken} in {name}).")


def with_scores(card: Card, scores: Mapping[str, Any]) -> Card:
    """Return the card with ``scores`` added."""
    return dataclasses.replace(card, scores={**card.scores, **scores})
