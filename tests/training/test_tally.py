"""Running sums: what is read is what was added, in this process or in all of them."""

from __future__ import annotations

import math

import torch

from tellapart.training.tally import Tally


def test_sums_of_an_epoch_and_of_a_window() -> None:
    tally = Tally(torch.device("cpu"), (0.0, 0.0, 0.0), (1.0, 2.0, 3.0))
    assert tally.add(torch.tensor(4.0), torch.tensor(5), 6)
    epoch, window, norm = tally.ask(torch.tensor(7.0)).read()
    assert (epoch, window, norm) == ([4, 5, 6], [5, 7, 9], 7)
    tally.clear_window()
    assert tally.read() == ([4, 5, 6], [0, 0, 0])
    assert not tally.add(torch.tensor(math.nan), torch.tensor(0), 1)


def test_a_reading_adds_up_the_sums_of_all_processes_and_not_the_norm() -> None:
    tally = Tally(torch.device("cpu"), (1.0, 1.0, 2.0), (1.0, 0.0, 1.0))
    reading = tally.ask(torch.tensor(3.0), lambda sums: sums.mul_(2))
    assert reading.read() == ([2, 2, 4], [2, 0, 2], 3)
    assert tally.read() == ([1, 1, 2], [1, 0, 1]), "each goes on with its own"
    assert math.isnan(tally.ask(None).read()[2])
