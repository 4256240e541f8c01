"""Optimizers: which parameters decay, how fast each block learns, and the algorithm that updates them.

Knows nothing of losses or schedules; blocks of layers are given by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tellapart import references
from tellapart.errors import ModelError, SpecError
from tellapart.models import heads
from tellapart.spec import TrainingSpec
from tellapart.training.methods.muon_sgd import MuonSgd

Group = dict[str, Any]

# Devices on which torch's SGD, Adam and AdamW have one kernel for a whole group.
_FUSED_DEVICES = ("cpu", "cuda")
# Embeddings of torchvision's transformers, by the last part of the parameter's name; timm's models
# name theirs by ``no_weight_decay()``.
_EMBEDDINGS = ("class_token", "pos_embedding", "relative_position_bias_table")


def parameter_groups(
    model: nn.Module,
    blocks: Sequence[Sequence[str]],
    weight_decay: float,
    layer_decay: float = 1.0,
    bias_scale: float = 0.0,
    head_scale: float = 0.0,
    early_steps: int = 0,
) -> list[Group]:
    """Return the model's parameters in groups, one for each pair of learning rate and weight decay.

    A group has ``params``, ``weight_decay``, ``lr_scale`` (a factor of the learning rate) and ``matrices``:
    for each parameter, whether it is one that Muon is made for (``build_optimizer`` takes that key out
    again). If ``early_steps`` is above 0, early parameters (`heads.early_names`) are in groups with that key.

    - No weight decay: biases, parameters of norms and all others with fewer than two dimensions, embeddings,
      and what the model itself names by ``no_weight_decay()``, as timm's models do.
    - lr_scale is ``layer_decay ** index`` of the block, 1 for the head (ULMFiT, Howard and Ruder 2018).
      ``blocks`` are names of parameters or of modules that hold them, from the head to the stem; every
      parameter must be in one of them unless layer_decay is 1. Raises ModelError for a parameter in none.
    - ``bias_scale`` (parameters with fewer than two dimensions) and ``head_scale`` (the others of block 0), where
      not 0, are further factors of lr_scale. Their weight decay is weight_decay divided by it, biases' too, so that
      each step shrinks them by the same fraction as the weights (the "scalebias" of arXiv:2404.00498).

    All parameters are in the groups, even those that do not train: they have no gradient, so optimizers skip them,
    weight decay included, until a later stage thaws them. Give the model itself, not its wrapper.
    """
    undecayed = _undecayed(model)
    matrices = _matrices(model, blocks, undecayed)
    early = heads.early_names(model) if early_steps else ()
    groups: dict[tuple[float, float, bool], Group] = {}
    for name, parameter in model.named_parameters():
        scale = 1.0 if layer_decay == 1.0 else layer_decay ** _block_of(name, blocks)
        decay = 0.0 if name in undecayed else weight_decay
        own = bias_scale if parameter.ndim < 2 else head_scale if _in_head(name, blocks) else 0.0
        if own:
            scale, decay = scale * own, weight_decay / own
        group = groups.setdefault(
            (scale, decay, name in early),
            {"params": [], "weight_decay": decay, "lr_scale": scale, "matrices": []},
        )
        if name in early:
            group["early_steps"] = early_steps
        group["params"].append(parameter)
        group["matrices"].append(name in matrices)
    return list(groups.values())


def own_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[Group]:
    """Return the groups of a task's own parameters that train: weights decay, vectors do not."""
    groups: list[Group] = []
    for is_vector, decay in ((False, weight_decay), (True, 0.0)):
        chosen = [p for p in parameters if p.requires_grad and (p.ndim < 2) == is_vector]
        if chosen:
            group = {"params": chosen, "weight_decay": decay, "lr_scale": 1.0}
            groups.append({**group, "matrices": [False] * len(chosen)})
    return groups


def build_optimizer(spec: TrainingSpec, groups: list[Group], fused: bool = True) -> torch.optim.Optimizer:
    """Return the optimizer of ``spec`` over the groups of ``parameter_groups``.

    Its param_groups have ``lr`` (``spec.lr`` times lr_scale, until ``set_lr``) and ``lr_scale``. Going on
    after ``load_state_dict`` is exact, bit for bit. Move the model to its device and memory format before.
    ``fused``: use torch's kernels for a whole step if it has them (SGD, Adam, AdamW on the CPU and CUDA). Raises
    SpecError for values that the optimizer does not take.
    """
    _check(spec)
    plain = [{key: value for key, value in group.items() if key != "matrices"} for group in groups]
    for group in plain:
        group["lr"] = spec.lr * group["lr_scale"]
    if spec.optimizer == "muon-sgd":
        return _muon_sgd(spec, plain, [group["matrices"] for group in groups])
    if spec.optimizer == "muon":
        return Muon(spec, plain, [group["matrices"] for group in groups], fused)
    if references.is_own(spec.optimizer):
        return _own(spec, plain)
    if spec.optimizer_arguments:
        raise SpecError(
            f"training.optimizer_arguments are for an optimizer of your own; {spec.optimizer} takes none."
        )
    return _BUILDERS[spec.optimizer](spec, plain, fused)


def _own(spec: TrainingSpec, groups: list[Group]) -> torch.optim.Optimizer:
    """Return the user's own optimizer. Raises SpecError if it is not an optimizer, or not over these groups."""
    name = spec.optimizer
    make = references.load(name, "optimizer", f"A run with the optimizer {name}")
    if not callable(make):
        raise SpecError(
            f"{name} is of type {type(make).__name__}; an optimizer is made by a function or a class."
        )
    made = references.called(make, spec.optimizer_arguments, name, groups, lr=spec.lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise SpecError(f"{name} returned {type(made).__name__}; it must return a torch.optim.Optimizer.")
    if [len(group["params"]) for group in made.param_groups] != [
        len(group["params"]) for group in groups
    ] or any("lr_scale" not in group for group in made.param_groups):
        raise SpecError(
            f"{name} has different parameter groups than it was given; pass them to torch's optimizer unchanged."
        )
    return made


def set_lr(optimizer: torch.optim.Optimizer, lr: float, factor: float, step: float = 0) -> None:
    """Set each group's learning rate to ``lr * factor * lr_scale``.

    A group of early parameters, which has ``early_steps``, falls linearly from ``lr * lr_scale`` at step 0 to 0 at that
    step instead.
    """
    for group in optimizer.param_groups:
        early = group.get("early_steps")
        part = max(0.0, 1 - step / early) if early else factor
        group["lr"] = lr * part * group["lr_scale"]


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the current learning rate, from the groups that follow the schedule."""
    groups = [group for group in optimizer.param_groups if not group.get("early_steps")]
    return max(float(group["lr"] / group["lr_scale"]) for group in groups)


def _undecayed(model: nn.Module) -> set[str]:
    """Return the names of the parameters without weight decay."""
    named = getattr(model, "no_weight_decay", None)
    names = set(named()) if callable(named) else set()
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if parameter.ndim < 2 or last == "bias" or last in _EMBEDDINGS:
            names.add(name)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            names.add(f"{name}.weight" if name else "weight")
    return names


def _matrices(model: nn.Module, blocks: Sequence[Sequence[str]], undecayed: set[str]) -> set[str]:
    """Return the names of the weights that Muon is made for: those of hidden layers that are matrices.

    Not the head (block 0) and not the input layer (the first weight), as the author of the method has it, and
    not depthwise filters nor per-channel scales, which mix no channels. A model may name its own by
    ``muon_weights()``: one whose first layer is fixed, say.
    """
    named = getattr(model, "muon_weights", None)
    if callable(named):
        return set(named())
    weights = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2 and name not in undecayed]
    return {
        name for name, p in weights[1:] if p.shape[0] > 1 and p.shape[1] > 1 and not _in_head(name, blocks)
    }


def _in_head(name: str, blocks: Sequence[Sequence[str]]) -> bool:
    return bool(blocks) and any(_within(name, prefix) for prefix in blocks[0])


def _block_of(name: str, blocks: Sequence[Sequence[str]]) -> int:
    for index, prefixes in enumerate(blocks):
        if any(_within(name, prefix) for prefix in prefixes):
            return index
    raise ModelError(
        f"The parameter {name!r} is in no block of layers; learning rates by layer need one for each."
    )


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _check(spec: TrainingSpec) -> None:
    if spec.nesterov and spec.momentum == 0 and spec.optimizer in ("sgd", "muon", "muon-sgd"):
        raise SpecError("training.nesterov needs training.momentum above 0.")
    if not all(0 <= beta < 1 for beta in spec.betas):
        raise SpecError(f"training.betas is {spec.betas}; both must be at least 0 and below 1.")


def _kernels(groups: list[Group], fused: bool) -> dict[str, bool]:
    """Return ``{"fused": True}`` if wanted and supported by torch, otherwise ``{"foreach": True}``.

    The fused kernels go through memory and assume equal strides of gradient and weight, which autograd ensures.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    can = fused and all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"fused": True} if can else {"foreach": True}


def _sgd(spec: TrainingSpec, groups: list[Group], fused: bool) -> torch.optim.Optimizer:
    # With a gradient scaler, torch's fused SGD leaves the momentum uninitialised if the first step is
    # skipped.
    kernels = {"foreach": True} if spec.precision == "fp16" else _kernels(groups, fused)
    optimizer = torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, **kernels)
    if spec.momentum:
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Start the momentum of parameters that get their first gradient at zero, which gives torch's first step.

    torch's fused SGD itself fails if some parameters of a group have momentum and others, just thawed, do not.
    """
    state = optimizer.state
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter not in state:
                state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _adam(spec: TrainingSpec, groups: list[Group], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=spec.lr, betas=spec.betas, **_kernels(groups, fused))


def _adamw(spec: TrainingSpec, groups: list[Group], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, **_kernels(groups, fused))


def _rmsprop(spec: TrainingSpec, groups: list[Group], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=spec.lr, momentum=spec.momentum, foreach=True)


_BUILDERS: dict[str, Callable[[TrainingSpec, list[Group], bool], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
}


def _by_kind(groups: list[Group], matrices: list[list[bool]]) -> list[Group]:
    """Return the groups divided into Muon's matrices and the others, marked by the key ``muon``."""
    return [
        {**group, "params": chosen, "muon": wanted}
        for group, flags in zip(groups, matrices, strict=True)
        for wanted in (True, False)
        if (chosen := [p for p, flag in zip(group["params"], flags, strict=True) if flag == wanted])
    ]


def _muon_sgd(spec: TrainingSpec, groups: list[Group], matrices: list[list[bool]]) -> torch.optim.Optimizer:
    split = _by_kind(groups, matrices)
    for group in split:
        group["momentum"] = spec.momentum if group["muon"] else spec.sgd_momentum
        group["nesterov"] = spec.nesterov and group["momentum"] > 0
    return MuonSgd(split, torch.bfloat16 if spec.precision == "bf16" else torch.float32)


class Muon(torch.optim.Optimizer):
    """Muon for the weights of hidden layers, AdamW for all others, as one optimizer.

    Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a weight matrix by
    the nearest orthogonal one; its author gives the first and the last layer, embeddings, norms and biases to
    AdamW, and flattens filters of convolutions to [out, in * height * width]. torch.optim.Muon takes matrices
    only; this class shows it such views. Its steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon
    is Scalable for LLM Training"), so that one learning rate and weight decay serve both.

    param_groups hold the model's own parameters; their values are copied to the two inner optimizers at each step.
    """

    def __init__(
        self, spec: TrainingSpec, groups: list[Group], matrices: list[list[bool]], fused: bool = True
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise SpecError(
                f"training.optimizer muon needs torch 2.9 or newer; this is {torch.__version__}. "
                "Use adamw or sgd."
            )
        super().__init__(_by_kind(groups, matrices), {"lr": spec.lr, "weight_decay": 0.0})
        # The matrices by their parameters. Their values are set at each step: a parameter's storage may move.
        self._pairs = [
            (p, p.detach().reshape(p.shape[0], -1))
            for g in self.param_groups
            if g["muon"]
            for p in g["params"]
        ]
        flat = dict(self._pairs)
        hidden = [{"params": [flat[p] for p in g["params"]]} for g in self.param_groups if g["muon"]]
        others = [{"params": g["params"]} for g in self.param_groups if not g["muon"]]
        # Divided by the groups' flag "muon"; either may be empty.
        self._inner: dict[bool, torch.optim.Optimizer] = {}
        if hidden:
            self._inner[True] = torch.optim.Muon(
                hidden,
                spec.lr,
                momentum=spec.momentum,
                nesterov=spec.nesterov,
                adjust_lr_fn="match_rms_adamw",
            )
        if others:
            self._inner[False] = _adamw(spec, others, fused)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the parameters' gradients; closures are not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for parameter, matrix in self._pairs:
            matrix.data = parameter.data.reshape(matrix.shape)
            matrix.grad = None if parameter.grad is None else parameter.grad.reshape(matrix.shape)
        for kind, optimizer in self._inner.items():
            groups = [group for group in self.param_groups if group["muon"] == kind]
            for inner, group in zip(optimizer.param_groups, groups, strict=True):
                inner["lr"], inner["weight_decay"] = group["lr"], group["weight_decay"]
            optimizer.step()
        for parameter, matrix in self._pairs:
            # In channels-last order the matrix is a copy, not a view.
            if matrix.grad is not None and matrix.data_ptr() != parameter.data_ptr():
                parameter.copy_(matrix.view(parameter.shape))
            matrix.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the two inner optimizers and this one's groups."""
        return {
            **super().state_dict(),
            "inner": [optimizer.state_dict() for optimizer in self._inner.values()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "inner"})
        for optimizer, state in zip(self._inner.values(), state_dict["inner"], strict=True):
            optimizer.load_state_dict(state)
