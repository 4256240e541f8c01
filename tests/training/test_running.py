"""Running sums: what is read is what was added, in this process or in all of them."""

from __future__ import annotations

import math

import torch

from tellapart.training.running import RunningMetrics


def test_sums_of_an_epoch_and_of_a_window() -> None:
    running = RunningMetrics(torch.device("cpu"), ("accuracy",), (0.0, 0.0, 0.0), (1.0, 2.0, 3.0))
    assert running.add(torch.tensor(4.0), {"accuracy": torch.tensor(5)}, 6)
    epoch, window, norm = running.ask(torch.tensor(7.0)).read()
    assert (epoch, window, norm) == ([4, 5, 6], [5, 7, 9], 7)
    running.clear_window()
    assert running.read() == ([4, 5, 6], [0, 0, 0])
    assert not running.add(torch.tensor(math.nan), {"accuracy": torch.tensor(0)}, 1)


def test_a_reading_adds_up_the_sums_of_all_processes_and_not_the_norm() -> None:
    running = RunningMetrics(torch.device("cpu"), ("accuracy",), (1.0, 1.0, 2.0), (1.0, 0.0, 1.0))
    reading = running.ask(torch.tensor(3.0), lambda sums: sums.mul_(2))
    assert reading.read() == ([2, 2, 4], [2, 0, 2], 3)
    assert running.read() == ([1, 1, 2], [1, 0, 1]), "each goes on with its own"
    assert math.isnan(running.ask(None).read()[2])
