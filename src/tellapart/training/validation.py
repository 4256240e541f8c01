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
from tellapart.training.task import Each, Task


def resident(images: ImageSet, spec: Spec, device: torch.device) -> ImageSet:
    """Return the images in GPU memory if they fit and the spec allows it."""
    return images.on_device(device, resident_limit(device)) if spec.speed.on_device else images


def autocast(spec: Spec, device: torch.device) -> torch.autocast:
    """Return a context in which networks compute in the spec's precision, which is resolved."""
    dtype = AMP_DTYPES[spec.training.precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


class Validation:
    """Measures a network on the val split, each process doing its share of the images.

    ``each``: how the last measured network answered each image; None if the task does not say.
    """

    def __init__(
        self,
        images: ImageSet,
        inputs: Callable[[torch.Tensor], torch.Tensor],
        spec: Spec,
        processes: Processes,
        views: Views,
        task: Task,
    ) -> None:
        self.images, self.inputs, self.spec = resident(images, spec, processes.device), inputs, spec
        self.processes, self.views, self.task = processes, views, task
        samples = images.samples
        self.labels = torch.from_numpy(samples.labels if samples.targets is None else samples.targets)
        self.batch_size = batch_that_pays(spec.input.size, processes.device)
        self.each: Each | None = None

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the network's validation figures."""
        model.eval()
        processes = self.processes
        ours = np.array_split(np.arange(len(self.images)), processes.world)[processes.rank]

        @torch.inference_mode()
        def predict(batch: torch.Tensor) -> torch.Tensor:
            network_inputs = self.inputs(batch)
            with autocast(self.spec, processes.device):
                return averaged(model, network_inputs, self.views)

        parts = processes.gather(collect_logits(predict, self.images, ours, self.batch_size))
        logits = torch.cat([part for part in parts if len(part)])
        self.each = self.task.each(logits, self.labels)
        return self.task.scores(logits, self.labels)


def validator(
    images: ImageSet | None,
    inputs: Callable[[torch.Tensor], torch.Tensor],
    spec: Spec,
    processes: Processes,
    views: Views,
    task: Task,
) -> Validation | None:
    """Return a function from a network to its validation figures; None where nothing is measured.

    ``inputs`` turns a batch of the set into the network's input, on its device.
    """
    if images is None or not task.score_names:
        return None
    return Validation(images, inputs, spec, processes, views, task)
