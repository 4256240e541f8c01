"""The weights alone, as the tutorials save them: a ``.pth`` file with a state dict."""

from __future__ import annotations

from pathlib import Path

import torch

from tellapart import artifact
from tellapart.contract import Card
from tellapart.errors import ArtifactError
from tellapart.export.base import Options, Written
from tellapart.export.graph import GraphModel
from tellapart.models import zoo
from tellapart.runtime import Backend
from tellapart.runtime.eager import EagerBackend


def write(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the network's state dict."""
    torch.save(graph.network.state_dict(), target)
    return Written((target,), {"tensors": len(graph.network.state_dict())})


def open_file(path: Path, card: Card, threads: int) -> Backend:
    """Open the weights as the network that the card describes. Raises ArtifactError."""
    network = zoo.build(card.architecture)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ArtifactError(f"The weights in {path} do not fit {card.architecture.name}: {error}") from None
    return EagerBackend(artifact.Predictor(network, card, torch.device("cpu")))
