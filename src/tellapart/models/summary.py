"""What a network consists of: layers, output shapes, parameters and floating-point operations.

Knows nothing of names or weights; takes any ``nn.Module`` that classifies images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tellapart.contract.sides import Size, sides

COLUMNS = (43, 20, 18, 13)
"""Widths of the table's columns, with two blanks between them: 100 in all."""


@dataclass(frozen=True)
class Row:
    """One layer: dotted name, class, output shape without the batch, and its own parameters."""

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Summary:
    """A network's layers in the order of their use, and totals.

    ``flops`` are those of one image's forward pass; a multiplication and an addition count as two. Only
    matrix products, convolutions and attention are counted, as torch.utils.flop_counter does. ``megabytes``
    (10^6 bytes) is the size of parameters and buffers.
    """

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    flops: int
    megabytes: float
    input_shape: tuple[int, int, int]


def summarise(model: nn.Module, channels: int, size: Size) -> Summary:
    """Return the summary for images ``[channels, height, width]``; runs one in evaluation mode.

    The network is left unchanged. Parameters outside layers (tokens, position embeddings) are counted at the module
    that has them; the rows' parameters add up to the total.
    """
    seen: dict[str, tuple[int, ...]] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        seen.setdefault(names[module], _shape(output))

    handles = [module.register_forward_hook(note) for module in names]
    modes = {module: module.training for module in names}
    first = next(model.parameters(), torch.zeros(()))
    image = torch.zeros(1, channels, *sides(size), device=first.device, dtype=first.dtype)
    model.eval()
    try:
        with torch.no_grad(), _countable_attention(), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    parameters = list(model.parameters())
    tensors = parameters + list(model.buffers())
    return Summary(
        rows=_rows(model, seen),
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        flops=counter.get_total_flops(),
        megabytes=sum(t.numel() * t.element_size() for t in tensors) / 1e6,
        input_shape=(channels, *sides(size)),
    )


@contextlib.contextmanager
def _countable_attention() -> Iterator[None]:
    """Compute attention by matrix products in this context: the counter does not know the CPU's fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _shape(output: Any) -> tuple[int, ...]:
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else ()


def _rows(model: nn.Module, seen: dict[str, tuple[int, ...]]) -> tuple[Row, ...]:
    """Return a row for each layer without layers inside, and for each module with parameters of its own."""
    modules = dict(model.named_modules())
    counted: set[int] = set()
    rows = []
    for name in [*seen, *(name for name in modules if name not in seen)]:
        module = modules[name]
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(id(p) for p in own)
        leaf = not any(True for _ in module.children())
        if own or (leaf and name in seen and not isinstance(module, nn.Identity)):
            count = sum(p.numel() for p in own)
            rows.append(Row(name or "(network)", type(module).__name__, seen.get(name, ()), count))
    return tuple(rows)


def render(summary: Summary) -> str:
    """Return the summary as a plain text table of at most 100 columns."""
    lines = [_line(("layer", "type", "output", "parameters")), "-" * (sum(COLUMNS) + 6)]
    for row in summary.rows:
        shape = "x".join(str(n) for n in row.output_shape) or "-"
        lines.append(_line((row.name, row.type, shape, f"{row.parameters:,}")))
    channels, height, width = summary.input_shape
    frozen = summary.parameters - summary.trainable
    lines += [
        "-" * (sum(COLUMNS) + 6),
        f"Input         {channels}x{height}x{width}",
        f"Parameters    {summary.parameters:,} ({summary.trainable:,} trainable, {frozen:,} frozen)",
        f"FLOPs         {_count(summary.flops)} for one image (a multiply-add counts as 2)",
        f"Size          {summary.megabytes:,.2f} MB",
    ]
    return "\n".join(lines)


def _line(cells: tuple[str, str, str, str]) -> str:
    align: tuple[Callable[..., str], ...] = (str.ljust, str.ljust, str.ljust, str.rjust)
    parts = [put(_fit(text, width), width) for text, width, put in zip(cells, COLUMNS, align, strict=True)]
    return "  ".join(parts).rstrip()


def _fit(text: str, width: int) -> str:
    """Cut the beginning of a text that is too long: the end of a layer's name says more."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def _count(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:.0f}"
