"""Early stopping against Keras' rule, and the choice of the epoch against the rule written out over whole runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.spec import TrainingSpec
from tellapart.training.choosing import Chooser, standard_error
from tellapart.training.progress import Progress

MANY = np.array([50_000, 50_000])  # a standard error of about 0.1 points


def follow(
    spec: TrainingSpec, epochs: Sequence[dict[str, float]], counts: np.ndarray = MANY
) -> tuple[Progress, int | None, str]:
    """Judge epoch after epoch; return the progress, the epoch after which it stops, and what it says then."""
    chooser, progress = Chooser(spec, counts), Progress()
    for epoch, scores in enumerate(epochs):
        progress.epoch = epoch
        chooser.judge(progress, scores)
        if text := chooser.stops(progress):
            return progress, epoch, text
    return progress, None, ""


def scores(metric: str, value: float, loss: float = 1.0) -> dict[str, float]:
    return {"accuracy": 0.5, "macro-f1": 0.5, "balanced-accuracy": 0.5, "loss": loss, metric: value}


NAN = math.nan
# (metric, min_delta, patience, values, the epoch after which keras.callbacks.EarlyStopping stops, by hand).
# Keras: wait += 1; if value - min_delta is above the reference (loss: value + min_delta below it), the reference becomes
# the value and wait 0; else stop where wait >= patience and it is not the first epoch.
KERAS: list[tuple[str, float, int, list[float], int | None]] = [
    ("accuracy", 0.0, 2, [0.3, 0.5, 0.4, 0.5, 0.9], 3),  # a tie is no improvement
    ("accuracy", 0.0, 3, [0.3, 0.5, 0.4, 0.5, 0.9, 0.9, 0.8], None),
    ("accuracy", 0.0, 1, [0.3, 0.2, 0.9], 1),
    ("accuracy", 0.01, 2, [0.500, 0.506, 0.512, 0.518, 0.524, 0.530], None),  # small steps that add up
    ("accuracy", 0.01, 1, [0.500, 0.506, 0.512], 1),
    ("accuracy", 0.01, 3, [0.50, 0.505, 0.509, 0.509, 0.9], 3),
    ("accuracy", 0.05, 2, [0.50, 0.52, 0.54, 0.9], 2),
    ("accuracy", 0.05, 2, [0.50, 0.52, 0.60, 0.61, 0.62, 0.9], 4),
    ("accuracy", 0.05, 2, [0.50, 0.54, 0.56, 0.60, 0.62], None),
    ("loss", 0.0, 2, [1.0, 0.7, 0.8, 0.75, 0.1], 3),
    ("loss", 0.1, 2, [1.0, 0.95, 0.93, 0.1], 2),
    ("loss", 0.1, 2, [1.0, 0.94, 0.88, 0.82, 0.76, 0.70], None),
    ("loss", 0.0, 2, [1.0, NAN, NAN, 0.1], 2),
    ("loss", 0.0, 2, [NAN, 1.0, NAN, 0.9, NAN, NAN], 5),
    ("macro-f1", 0.0, 1, [0.1, 0.3, 0.3, 0.9], 2),
    ("balanced-accuracy", 0.0, 1, [0.1, 0.3, 0.2, 0.9], 2),
    ("accuracy", 0.0, 0, [0.9, 0.1, 0.1, 0.1], None),  # patience 0 is off here
]


@pytest.mark.parametrize(("metric", "min_delta", "patience", "values", "stop"), KERAS)
def test_stops_where_keras_does(
    metric: str, min_delta: float, patience: int, values: list[float], stop: int | None
) -> None:
    spec = TrainingSpec(best_metric=metric, min_delta=min_delta, patience=patience)  # type: ignore[arg-type]
    _, stopped, text = follow(spec, [scores(metric, value) for value in values])
    assert stopped == stop
    assert bool(text) == (stop is not None)


def test_the_message_is_true() -> None:
    spec = TrainingSpec(patience=2, min_delta=0.01)
    _, _, text = follow(spec, [scores("accuracy", value) for value in (0.5, 0.6, 0.605, 0.609)])
    assert text == (
        "Stopped early: validation accuracy did not rise by more than 0.01 for 2 epochs since epoch 2 (60.00 %)."
    )
    _, _, text = follow(TrainingSpec(patience=1, best_metric="loss"), [scores("loss", v) for v in (0.5, 0.6)])
    assert text == "Stopped early: validation loss did not fall for 1 epoch since epoch 1 (0.5000)."


# ------------------------------------------------------------------------------------ which epoch


def rule(metric: str, epochs: Sequence[dict[str, float]], counts: np.ndarray) -> set[int]:
    """The last epoch within one standard error of the highest, over the whole run at once; and its ties."""
    if metric == "loss":
        lowest = min(e["loss"] for e in epochs)
        return {k for k, e in enumerate(epochs) if e["loss"] == lowest}
    values = [e[metric] for e in epochs]
    highest = max(values)
    within = [
        k for k, v in enumerate(values) if v >= highest - standard_error(metric, highest, counts) - 1e-12
    ]
    return {k for k in within if values[k] == values[within[-1]]}


@settings(deadline=None, max_examples=200)
@given(
    right=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    losses=st.lists(st.floats(0.1, 3), min_size=12, max_size=12),
    metric=st.sampled_from(["accuracy", "balanced-accuracy", "macro-f1", "loss"]),
)
def test_one_pass_chooses_what_a_look_at_the_whole_run_does(
    right: list[int], losses: list[float], metric: str
) -> None:
    epochs = [scores(metric, k / 40, loss) for k, loss in zip(right, losses, strict=False)]
    counts = np.array([20, 0, 20])
    progress, _, _ = follow(TrainingSpec(best_metric=metric), epochs, counts)  # type: ignore[arg-type]
    assert progress.best_epoch in rule(metric, epochs, counts)
    assert progress.best_scores == epochs[progress.best_epoch]


def _chosen(values: list[tuple[float, float]], images: int, metric: str = "accuracy") -> int:
    epochs = [scores(metric, value, loss) for value, loss in values]
    counts = np.array([images // 2, images - images // 2])
    return follow(TrainingSpec(best_metric=metric), epochs, counts)[0].best_epoch  # type: ignore[arg-type]


def test_three_images_of_430_choose_nothing() -> None:
    noisy = [(310 / 430, 0.9), (323 / 430, 0.8), (326 / 430, 0.8), (324 / 430, 0.7), (323 / 430, 0.6)]
    assert _chosen(noisy, 430) == 4
    assert _chosen(noisy, 430_000) == 2  # here the same difference is none of chance
    assert _chosen([*noisy, (300 / 430, 0.5)], 430) == 4  # worse by more than the error


def test_ties_go_to_the_lower_loss() -> None:
    assert _chosen([(0.9, 0.5), (0.95, 0.3), (0.95, 0.4)], 100) == 1
    assert _chosen([(0.9, 0.5), (0.95, 0.4), (0.95, 0.3)], 100) == 2


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "loss"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_epoch_whose_loss_is_no_number_is_never_chosen(metric: str, bad: float) -> None:
    good, broken = scores(metric, 0.6, 0.6), {**scores(metric, 0.99), "loss": bad}
    for epochs, best in (([good, broken], 0), ([broken, good], 1), ([broken, good, broken], 1)):
        progress, _, _ = follow(TrainingSpec(best_metric=metric), epochs)  # type: ignore[arg-type]
        assert progress.best_epoch == best
    progress, _, _ = follow(TrainingSpec(best_metric=metric), [broken, broken])  # type: ignore[arg-type]
    assert progress.best_epoch == 1  # nothing can be measured: the last counts


def test_the_choice_is_explained() -> None:
    def said(values: list[tuple[float, float]], metric: str = "accuracy") -> str:
        epochs = [scores(metric, value, loss) for value, loss in values]
        spec, counts = TrainingSpec(best_metric=metric), np.array([50, 50])  # type: ignore[arg-type]
        return Chooser(spec, counts).explain(follow(spec, epochs, counts)[0])

    assert said([(0.7, 1), (0.9, 1)]) == "Epoch 2 is kept: validation accuracy 90.00 %, the highest."
    assert said([(0.9, 1), (0.89, 1)]).startswith(
        "Epoch 2 is kept: validation accuracy 89.00 %. The highest, 90.00 % in epoch 1, is within one standard error (3.10 %"
    )
    assert "as in epoch 1, and a loss that is no higher" in said([(0.9, 1.0), (0.9, 0.5)])
    assert said([(0.9, 0.9), (0.5, 0.5)], "loss") == "Epoch 2 is kept: validation loss 0.5000, the lowest."
    assert Chooser(TrainingSpec(), None).explain(Progress(best_epoch=3)) == ""


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([300, 20, 80])
    right = np.stack([rng.binomial(n, 0.8, 20_000) for n in counts])
    accuracy, balanced = right.sum(0) / counts.sum(), (right / counts[:, None]).mean(0)
    assert standard_error("accuracy", 0.8, counts) == pytest.approx(accuracy.std(), rel=0.02)
    assert standard_error("balanced-accuracy", 0.8, counts) == pytest.approx(balanced.std(), rel=0.02)
    assert standard_error("accuracy", 1.0, np.array([36])) > 0
    assert standard_error("loss", 0.8, counts) == 0


def test_a_checkpoint_of_an_earlier_version_continues(pictures: Any, build: Any) -> None:
    """It did not know of the highest figure and the reference: its best was both."""
    from tellapart.training.progress import take_up

    bench = build(pictures((3, 3), (1, 1)), **{"training.epochs": 2})
    old = {
        "epoch": 3,
        "best_epoch": 1,
        "best_value": 0.8,
        "best_scores": {"loss": 0.5, "accuracy": 0.8},
        "stale": 1,
    }
    saved = {
        "model": bench.model.state_dict(),
        "optimizer": bench.plan.optimizer.state_dict(),
        "schedule": {},
    }
    progress = take_up(bench.plan, {**saved, "progress": old})
    assert (progress.highest, progress.reference, progress.best_loss, progress.highest_epoch) == (
        0.8,
        0.8,
        0.5,
        1,
    )
