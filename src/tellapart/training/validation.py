"""Measuring the network on the val split during training, and the precision in which it computes.

Knows nothing of when that happens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tellapart.data.loader import ImageSet
from tellapart.data.transfer import resident_limit
from tellapart.devices import AMP_DTYPES
from tellapart.evaluation.infer import batch_that_pays, collect_logits
from tellapart.preprocess import Views, averaged
from tellapart.spec import Spec
from tellapart.training.distributed import Processes
from tellapart.training.task import Task


def resident(images: ImageSet, spec: Spec, device: torch.device) -> ImageSet:
    """Return the images in GPU memory if they fit and the spec allows it."""
    return images.on_device(device, resident_limit(device)) if spec.speed.on_device else images


def autocast(spec: Spec, device: torch.device) -> torch.autocast:
    """Return a context in which networks compute in the spec's precision, which is resolved."""
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

    ``inputs`` turns a batch of the set into the network's input, on its device.
    """
    if images is None or not task.score_names:
        return None
    images = resident(images, spec, processes.device)
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
