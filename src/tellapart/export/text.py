"""Comparisons as text and as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tellapart import numerals, pages
from tellapart.export.outcome import Parity, Side, Uncompared


def render(parities: Sequence[Parity | Uncompared]) -> str:
    """Return the table for a terminal, one block for each file."""
    return "\n\n".join(
        _block(parity) if isinstance(parity, Parity) else _failure(parity) for parity in parities
    )


def verdict(parity: Parity | Uncompared) -> str:
    """Return the result in a few words."""
    if parity.passed:
        return "agrees with the artifact"
    return "NOT WRITTEN" if isinstance(parity, Uncompared) and not parity.written else "REJECTED"


def _failure(one: Uncompared) -> str:
    head = f"{one.file}: {verdict(one)} ({one.format}, {one.precision})"
    return "\n".join([head, *(f"  {text}" for text in (*one.reasons, *one.notes))])


def _block(parity: Parity) -> str:
    lines = [f"{parity.file}: {verdict(parity)} ({parity.format}, {parity.precision})"]
    lines += [f"  {name:<30}{value}" for name, value in summary(parity)]
    head = f"  {'':<30}{'artifact':>20}{'export':>20}"
    lines += [head, *(f"  {name:<30}{ours:>20}{theirs:>20}" for name, ours, theirs in rows(parity))]
    lines += [f"  {reason}" for reason in parity.reasons]
    lines += [f"  {text}" for text in (parity.where, *parity.notes) if text]
    return "\n".join(lines)


def summary(parity: Parity) -> list[tuple[str, str]]:
    """Return what concerns both sides, as (name, value)."""
    ties = f", {parity.ties} of the others within the tolerance" if parity.ties else ""
    allowed = numerals.setting(parity.tolerance.probability)
    found = [
        ("images", f"{parity.n:,} from {parity.origin}" + _unreadable(parity)),
        (
            "labels agree" if parity.several else "top-1 agreement",
            f"{numerals.percent(parity.agreement)}{ties}",
        ),
        (
            "largest difference",
            f"{parity.max_difference:.2e} of {allowed} allowed",
        ),
        ("mean difference", f"{parity.mean_difference:.2e}"),
    ]
    if parity.whole_difference is not None:
        found.append(("as one graph", f"{parity.whole_difference:.2e}"))
    if parity.full_difference is not None:
        found.append(("the same, JPEG decoded whole", f"{parity.full_difference:.2e}"))
    if parity.features_difference is not None:
        found.append(
            ("features", f"{parity.features_difference:.2e} of {parity.tolerance.features:g} allowed")
        )
    share, levels = parity.pixels["share"], parity.pixels["levels"]
    found.append(
        (
            "input values that differ",
            numerals.percent(share, 4) + (f", by up to {levels:.3g}/255" if share else ""),
        )
    )
    return [*found, ("threads", str(parity.threads))]


def _unreadable(parity: Parity) -> str:
    return f" ({parity.unreadable} more cannot be read)" if parity.unreadable else ""


def rows(parity: Parity) -> list[tuple[str, str, str]]:
    """Return the measurements of each side, as (name, artifact, export)."""

    def both(name: str, show: Any) -> tuple[str, str, str]:
        return name, show(parity.artifact), show(parity.export)

    found = []
    if parity.artifact.accuracy is not None:
        found += [both("accuracy", _accuracy), both("95 % interval", _interval)]
    found.append(both("size", lambda one: numerals.megabytes(one.bytes)))
    for batch in parity.artifact.latency_ms:
        found.append(both(f"batch {batch}, p50 / p95 ms", lambda one, batch=batch: _latency(one, batch)))
    return found


def _accuracy(one: Side) -> str:
    return "" if one.accuracy is None else numerals.percent(one.accuracy)


def _interval(one: Side) -> str:
    return "" if one.interval is None else numerals.interval(*one.interval)


def _latency(one: Side, batch: int) -> str:
    return " / ".join(numerals.number(one.latency_ms[batch][name]) for name in ("p50", "p95"))


def page(parities: Sequence[Parity | Uncompared], model: str, version: str) -> str:
    """Return the HTML page: one file that needs no network."""
    environment = pages.environment("tellapart.export")
    blocks = [
        (one, verdict(one), *((summary(one), rows(one)) if isinstance(one, Parity) else ((), ())))
        for one in parities
    ]
    text = environment.get_template("parity.html.j2").render(blocks=blocks, model=model, version=version)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)
