"""The preprocessing contract and the views that a resolved spec asks for.

Chooses nothing.
"""

from __future__ import annotations

from tellapart.errors import SpecError
from tellapart.preprocess import Preprocessing, Views
from tellapart.spec import InputSpec


def contract(spec: InputSpec) -> Preprocessing:
    """Return the preprocessing contract of a resolved input spec; 0 and 1 if it has no mean and deviation."""
    channels = spec.channels
    assert channels
    assert spec.resize != "auto"
    assert spec.interpolation != "auto"
    return Preprocessing(
        size=spec.size,
        channels=channels,
        resize=spec.resize,
        interpolation=spec.interpolation,
        crop_fraction=spec.crop_fraction,
        decode="scaled" if spec.decode == "scaled" else "full",
        range=spec.levels(),
        depth="float32" if spec.depth == "float32" else "uint8",
        mean=_per_channel(spec.mean, channels, 0.0, "mean"),
        std=_per_channel(spec.std, channels, 1.0, "std"),
    )


def views(spec: InputSpec) -> Views:
    """Return over which views of an image the model's answer is averaged."""
    return Views(spec.views, spec.views_below)


def _per_channel(values: tuple[float, ...], channels: int, default: float, name: str) -> tuple[float, ...]:
    if not values:
        return (default,) * channels
    if len(values) not in (1, channels):
        raise SpecError(f"input.{name} has {len(values)} values; the input has {channels} channels.")
    return values * channels if len(values) == 1 else values
