from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tellapart.errors import SpecError
from tellapart.training.sampling import epoch_length, epoch_order

MODES = ["shuffle", "oversample", "undersample", "weighted"]
LABELS = st.lists(st.integers(0, 6), min_size=0, max_size=120).map(lambda x: np.array(x, dtype=np.int64))
SEEDS = st.integers(0, 2**63)
EPOCHS = st.integers(0, 10**6)


def class_sizes(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_counts=True)[1]


@settings(deadline=None, max_examples=100)
@given(labels=LABELS, mode=st.sampled_from(MODES), seed=SEEDS, epoch=EPOCHS)
def test_an_order_is_a_pure_function_of_valid_positions(
    labels: np.ndarray, mode: str, seed: int, epoch: int
) -> None:
    before = labels.copy()
    order = epoch_order(labels, mode, seed, epoch)
    assert order.dtype == np.int64
    assert order.shape == (epoch_length(labels, mode),)
    assert np.isin(order, np.arange(len(labels))).all()
    assert np.array_equal(order, epoch_order(labels, mode, seed, epoch))
    assert np.array_equal(labels, before)


@settings(deadline=None, max_examples=60)
@given(labels=LABELS, seed=SEEDS, epoch=EPOCHS)
def test_shuffle_shows_each_image_once(labels: np.ndarray, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(epoch_order(labels, "shuffle", seed, epoch)), np.arange(len(labels)))


@settings(deadline=None, max_examples=100)
@given(labels=LABELS.filter(len), seed=SEEDS, epoch=EPOCHS)
def test_oversample_balances_and_repeats_evenly(labels: np.ndarray, seed: int, epoch: int) -> None:
    order = epoch_order(labels, "oversample", seed, epoch)
    largest = class_sizes(labels).max()
    assert (class_sizes(labels[order]) == largest).all()
    times = np.bincount(order, minlength=len(labels))
    share = largest / np.bincount(labels)[labels]
    assert (times >= np.floor(share)).all()
    assert (times <= np.ceil(share)).all()


@settings(deadline=None, max_examples=60)
@given(labels=LABELS.filter(len), seed=SEEDS, epoch=EPOCHS)
def test_undersample_balances_without_repetition(labels: np.ndarray, seed: int, epoch: int) -> None:
    order = epoch_order(labels, "undersample", seed, epoch)
    assert len(np.unique(order)) == len(order)
    sizes = class_sizes(labels)
    assert np.array_equal(class_sizes(labels[order]), np.full(len(sizes), sizes.min()))


@pytest.mark.parametrize("mode", MODES)
def test_seed_and_epoch_change_the_order(mode: str) -> None:
    labels = np.repeat(np.arange(3), [200, 50, 100])
    orders = {epoch_order(labels, mode, seed, epoch).tobytes() for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    # (2**32, 0) and (0, 1) would be the same entropy for numpy's SeedSequence.
    assert not np.array_equal(epoch_order(labels, mode, 2**32, 0), epoch_order(labels, mode, 0, 1))
    assert np.array_equal(epoch_order(labels, mode, -1, 0), epoch_order(labels, mode, 2**64 - 1, 0))


def test_undersample_reaches_every_image_over_the_epochs() -> None:
    labels = np.repeat(np.arange(2), [100, 20])
    seen = np.unique(np.concatenate([epoch_order(labels, "undersample", 0, e) for e in range(60)]))
    assert len(seen) == 120


def test_orders_are_shuffled_across_classes() -> None:
    labels = np.repeat(np.arange(2), [1000, 1000])
    for mode in MODES:
        first = labels[epoch_order(labels, mode, 1, 1)][:1000]
        assert 400 < first.sum() < 600


def test_weighted_draws_images_with_class_balanced_probability() -> None:
    labels = np.repeat(np.arange(3), [60, 30, 10])
    draws = np.concatenate([epoch_order(labels, "weighted", 7, epoch) for epoch in range(600)])
    expected = len(draws) / 3 / np.bincount(labels)[labels]
    assert chisquare(np.bincount(draws, minlength=100), expected).pvalue > 1e-3


def test_classes_without_images_play_no_part() -> None:
    labels = np.array([0, 0, 0, 5], dtype=np.int64)
    assert epoch_length(labels, "oversample") == 6
    assert epoch_length(labels, "undersample") == 2


@pytest.mark.parametrize("mode", MODES)
def test_another_process_computes_the_same_order(mode: str) -> None:
    code = (
        "import sys, hashlib, numpy as np; from tellapart.training.sampling import epoch_order;"
        "labels = np.repeat(np.arange(3), [200, 50, 100]);"
        f"print(hashlib.sha256(epoch_order(labels, {mode!r}, 3, 4).tobytes()).hexdigest(), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    labels = np.repeat(np.arange(3), [200, 50, 100])
    ours = hashlib.sha256(epoch_order(labels, mode, 3, 4).tobytes()).hexdigest()
    assert result.stdout.split() == [ours, "False"]


def test_unknown_mode_is_refused_with_the_nearest() -> None:
    for function in (epoch_length, lambda labels, mode: epoch_order(labels, mode, 0, 0)):
        with pytest.raises(SpecError, match="oversample"):
            function(np.zeros(3, dtype=np.int64), "over-sample")
