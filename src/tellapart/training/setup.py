"""Putting a run together: resolved spec and images in, a plan for the loop out.

Knows nothing of run folders, reports or the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tellapart import references
from tellapart.augment import Augment
from tellapart.devices import put, seed_device
from tellapart.errors import SpecError
from tellapart.models import heads, own_code, weights, zoo
from tellapart.preprocess import normalise, resize
from tellapart.spec import Spec, TrainingSpec
from tellapart.training import optim, own_metrics, sampling, stages
from tellapart.training.callbacks import Callback
from tellapart.training.distributed import Processes
from tellapart.training.losses import build_loss
from tellapart.training.methods import distillation, infobatch, multilabel, progressive, qat, sparse
from tellapart.training.methods.ema import Ema
from tellapart.training.own_loss import OwnLoss, try_out
from tellapart.training.resolution import Choice, DeviceFacts
from tellapart.training.resolution.inputs import views
from tellapart.training.run_data import RunData as RunData
from tellapart.training.run_data import prepare as prepare
from tellapart.training.schedule import Schedule
from tellapart.training.step import Plan
from tellapart.training.task import Classification, Labelled, Task
from tellapart.training.validation import resident, validator

# Below this work for a step, oneDNN's fixed cost for each call outweighs its speed (batches of 4 in the
# tutorials' network: 5 million; plain kernels are 1.4 times faster there, and 4 times slower at batches of 16).
PLAIN_KERNELS_FLOPS = 10_000_000
INITIAL_IMAGES = (
    5000  # for models that are initialised from training images (whitening): as many as in the paper
)


def complete(
    prepared: RunData, model: torch.nn.Module, processes: Processes, measured: Iterable[Choice] = ()
) -> RunData:
    """Choose what is open for speed, as ``measured`` or by the device; this is the last choice of a run."""
    labels, training = prepared.train.samples.labels, prepared.spec.training
    images = sampling.epoch_length(labels, training.sampling)
    device = DeviceFacts(processes.device.type, images, lambda: flops(prepared, model))
    return dataclasses.replace(prepared, resolution=prepared.resolution.by_speed(device, measured))


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
        arguments=spec.model.arguments,
    )
    seed_device(torch.device("cpu"), spec.seed)
    model = zoo.build(architecture)
    if references.is_own(architecture.name):
        own_code.check(model, architecture)
    info = None
    initialise = getattr(model, "initialise_from", None)
    if callable(initialise) and spec.model.weights == "none":
        initialise(initial_images(prepared))
    if spec.model.weights != "none":
        info = weights.load(model, architecture, spec.model.weights)
    elif spec.model.finetune != "full":
        raise SpecError(
            f"model.finetune is {spec.model.finetune!r}, which needs weights to start from; give --model.weights "
            "(pretrained, efficientnet-lite0 to lite2, a file or a run)."
        )
    return model, architecture, info


def initial_images(prepared: RunData, count: int | None = None) -> torch.Tensor:
    """Return training images for a model that is initialised from some: float32 [n, C, height, width], normalised.

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
    several = prepared.train.samples.targets is not None
    make = _of_several_labels if several else _of_one_label
    task = make(prepared, counts, augment, device)
    if spec.distill.teacher:
        return distillation.Distillation(task, spec.distill, model, prepared.contract, prepared.classes)
    return task


def _of_several_labels(
    prepared: RunData, counts: npt.NDArray[np.int64], augment: Augment, device: torch.device
) -> Labelled:
    spec = prepared.spec.training
    if spec.metrics:
        raise SpecError("training.metrics are for images of one label each; these have several.")
    return multilabel.MultiLabel(augment, multilabel.build_loss(spec, counts, len(prepared.train), device))


def _of_one_label(
    prepared: RunData, counts: npt.NDArray[np.int64], augment: Augment, device: torch.device
) -> Labelled:
    spec = prepared.spec
    criterion = build_loss(spec.training, counts, device)
    task = Classification(augment, criterion, prepared.train.samples.ordered)
    if isinstance(criterion, OwnLoss):
        soft = bool(spec.augment.mixup or spec.augment.cutmix)
        task.separable = try_out(criterion.cpu(), len(prepared.classes), soft)
        criterion.to(device)
    own = own_metrics.build(spec.training.metrics, task.score_names)
    labels = np.arange(2 * len(counts)) % len(counts)
    own_metrics.measure(own, labels, np.sort(labels))  # so that unusable metrics are reported before training
    return task.with_metrics(own)


MakeTask = Callable[[RunData, torch.nn.Module, Augment, npt.NDArray[np.int64]], Task]


def plan(
    prepared: RunData, model: torch.nn.Module, processes: Processes, make_task: MakeTask = build_task
) -> Plan:
    """Return what the loop runs; the spec is `complete`. Raises SpecError, ModelError.

    ``make_task``: a function that makes the task, for a task that is not tellapart's.
    """
    if not prepared.resolution.complete:
        raise RuntimeError("the spec is not complete: call setup.complete before setup.plan")
    spec, device, training = prepared.spec, processes.device, prepared.spec.training
    model, layout = _placed(prepared, model, processes)
    blocks, count = _blocks(spec, model), _images_per_pass(prepared, model)
    steps = -(-count // training.batch_size)
    augment = prepared.augment.in_order(layout.channels_last)
    _check(prepared, model)
    task = make_task(prepared, model, augment, _weighted_counts(prepared)).to(device)
    task.check(training.best_metric, training.accumulate)
    return Plan(
        spec=spec,
        model=model,
        blocks=blocks,
        task=task,
        optimizer=_optimizer(prepared, model, blocks, task, steps),
        schedule=Schedule(training, steps, training.epochs, _without_steps(spec, count)),
        train=resident(prepared.train, spec, device),
        validate=_validation(prepared, processes, layout.channels_last, task),
        images_per_epoch=_images_per_epoch(training, count),
        images_per_pass=count,
        ema=Ema(model, training.ema) if training.ema else None,
        scaler=torch.amp.GradScaler(device.type) if training.precision == "fp16" else None,
        plain_kernels=layout.plain_kernels,
        channels_last=layout.channels_last,
        graphs=spec.speed.cuda_graphs == "on" and _can_replay(spec, processes),
        search=spec.speed.kernel_search == "on" and device.type == "cuda",
        val_counts=None if prepared.val is None else prepared.val.samples.counts(),
        callbacks=_callbacks(spec, augment, len(prepared.train.samples.labels), processes),
    )


def _without_steps(spec: Spec, count: int) -> int:
    """Return the steps that do not count for the schedule: of the epoch in which a solver fits the head."""
    images = _images_per_epoch(spec.training, count)
    return -(-images // spec.training.batch_size) if stages.fitted_at(spec, 0) else 0


@dataclass(frozen=True)
class _Layout:
    """The memory layout of images and convolutions, and whether torch's plain kernels compute them."""

    channels_last: bool
    plain_kernels: bool


def _placed(
    prepared: RunData, model: torch.nn.Module, processes: Processes
) -> tuple[torch.nn.Module, _Layout]:
    """Put the network onto the device, in the memory format that suits it."""
    spec, device = prepared.spec, processes.device
    work = flops(prepared, model) * spec.training.batch_size if device.type == "cpu" else 0
    plain = device.type == "cpu" and work < PLAIN_KERNELS_FLOPS
    has_convolutions = any(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    channels_last = spec.speed.channels_last and has_convolutions and not plain
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = model.to(device)
    if spec.training.sync_batch_norm and processes.world > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model, _Layout(channels_last, plain)


def _blocks(spec: Spec, model: torch.nn.Module) -> list[list[str]]:
    """Return the network's blocks, from the first layers on. Raises SpecError if none would train."""
    blocks = heads.blocks(model)
    if spec.model.freeze_blocks >= len(blocks):
        raise SpecError(
            f"model.freeze_blocks is {spec.model.freeze_blocks}; {spec.model.name} has {len(blocks)} blocks, "
            "of which at least one must train."
        )
    return blocks


def _images_per_epoch(training: TrainingSpec, of_pass: int) -> int:
    """Return the images of an epoch: a pass, or those asked for, in whole batches."""
    size = training.batch_size
    asked = -(-training.epoch_images // size) * size
    return asked if 0 < asked < of_pass else of_pass


def _images_per_pass(prepared: RunData, model: torch.nn.Module) -> int:
    """Return the images of a pass.

    A batch norm learns nothing from one image, or refuses it: if the last batch would be a single image, one image is
    left out, another in each epoch.
    """
    training = prepared.spec.training
    count = sampling.epoch_length(prepared.train.samples.labels, training.sampling)
    alone = count % training.batch_size == 1 and count > 1 and _has_batch_norm(model)
    return count - 1 if alone else count


def _check(prepared: RunData, model: torch.nn.Module) -> None:
    """Refuse options that the chosen training methods do not support. Raises SpecError."""
    spec, contract = prepared.spec, prepared.contract
    progressive.check(spec.training, contract.size, model, contract.channels)
    infobatch.check(spec.training, spec.augment)
    qat.check(spec)


def _weighted_counts(prepared: RunData) -> npt.NDArray[np.int64]:
    """Return the images of each class for class weights, which must not favour again what sampling balances already."""
    counts = prepared.train.samples.counts()
    return counts if prepared.spec.training.sampling == "shuffle" else np.minimum(counts, 1)


def _optimizer(
    prepared: RunData, model: torch.nn.Module, blocks: list[list[str]], task: Task, steps: int
) -> torch.optim.Optimizer:
    """Return the optimizer; attach the hooks that round the network's weights and those that keep zeros."""
    spec, training = prepared.spec, prepared.spec.training
    groups = optim.parameter_groups(
        model,
        blocks,
        training.weight_decay,
        spec.model.layer_decay,
        training.bias_lr / training.lr,
        training.head_lr / training.lr,
        training.early_epochs * steps,
    )
    groups += optim.own_groups(task.own_parameters(), training.weight_decay)
    optimizer = optim.build_optimizer(training, groups, spec.speed.fused)
    if training.quantize != "none":
        qat.install(model, initial_images(prepared, qat.IMAGES))
    if training.keep_zeros:
        sparse.hold_zeros(model, optimizer)
    return optimizer


def _validation(
    prepared: RunData, processes: Processes, channels_last: bool, task: Task
) -> Callable[[torch.nn.Module], dict[str, float]] | None:
    """Return a function that measures the network on the val split; None if there is none."""

    def inputs(batch_NHWC: torch.Tensor) -> torch.Tensor:
        return normalise(put(batch_NHWC, processes.device), prepared.contract, channels_last)

    return validator(prepared.val, inputs, prepared.spec, processes, views(prepared.spec.input), task)


def _can_replay(spec: Spec, processes: Processes) -> bool:
    """Return whether whole steps can be CUDA graphs: one micro-batch, one process, no hooks inside the network."""
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


def _has_batch_norm(model: torch.nn.Module) -> bool:
    return any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())


def flops(prepared: RunData, model: torch.nn.Module) -> int:
    """Return the floating-point operations of one image's forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    contract = prepared.contract
    image = torch.zeros(1, contract.channels, *contract.sides)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())
