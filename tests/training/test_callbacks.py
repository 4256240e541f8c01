"""Callbacks: every hook in its place, a stop that is obeyed, and states that come back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tellapart
from tellapart.errors import SpecError, TrainingError
from tellapart.training import checkpoint
from tellapart.training.callbacks import Callback, Callbacks
from tellapart.training.loop import Trainer


class Diary(Callback):
    """Writes down each hook, and counts steps in its state."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps, self.losses = 0, []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.lines.append("fit")

    def on_epoch_start(self, epoch: int) -> None:
        self.lines.append(f"epoch {epoch}")

    def before_step(self, batch: Any) -> None:
        self.lines.append("before")

    def after_step(self, outcome: Any) -> None:
        self.lines.append("after")
        self.steps += 1
        self.losses.append(float(outcome.loss))
        assert outcome.metrics.keys() == {"accuracy"}

    def on_validate(self, scores: Mapping[str, float]) -> None:
        self.lines.append("validate" if "accuracy" in scores else "nothing to validate")

    def on_epoch_end(self, values: Mapping[str, float]) -> None:
        self.lines.append(f"ended {values['epoch']:.0f}")

    def on_save(self) -> None:
        self.lines.append("save")

    def on_fit_end(self) -> None:
        self.lines.append("end")

    def on_exception(self, error: BaseException) -> None:
        self.lines.append(type(error).__name__)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "losses": torch.tensor(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.losses = state["steps"], state["losses"].tolist()


def _with(bench: Any, *callbacks: Callback) -> Any:
    """Give a bench's trainer more callbacks."""
    trainer = bench.trainer
    trainer.callbacks = Callbacks([*trainer.callbacks.members.values(), *callbacks])
    return trainer


@pytest.mark.parametrize("validated", [True, False])
def test_each_hook_is_called_in_its_place(validated: bool, build: Any, pictures: Any) -> None:
    bench = build(pictures((8, 8), (2, 2) if validated else (0, 0)), **{"training.epochs": 2})
    diary = Diary()
    _with(bench, diary).run()
    words = "validate" if validated else "nothing to validate"
    epochs = [["epoch 0", *["before", "after"] * 2, words, "ended 1"]]
    epochs += [["epoch 1", *["before", "after"] * 2, words, "ended 2", "save", "end"]]
    assert [line for line in diary.lines if line != "save"] == ["fit", *epochs[0], *epochs[1][:-2], "end"]
    assert diary.lines[-2:] == ["save", "end"]


def test_they_change_nothing_by_being_there(build: Any, pictures: Any, difference: Any) -> None:
    plain, watched = (build(pictures(val=(3, 3, 3)), **{"model.dropout": 0.3}) for _ in range(2))
    plain.trainer.run()
    _with(watched, Callback(), Diary()).run()
    assert difference(plain.model, watched.model) == 0
    assert plain.recorder.column("train/loss") == watched.recorder.column("train/loss")


class Stopping(Callback):
    """Asks to stop in a hook."""

    def __init__(self, hook: str, at: int) -> None:
        self.left = at
        setattr(self, hook, self._count)

    def on_fit_start(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def _count(self, value: Any) -> None:
        self.left -= 1
        if not self.left:
            self.trainer.stop("That is enough.")


@pytest.mark.parametrize(
    ("hook", "at", "steps", "epochs"),
    [
        ("after_step", 3, 3, 1),
        ("after_step", 9, 9, 2),
        ("before_step", 1, 1, 1),
        ("on_validate", 2, 16, 2),
        ("on_epoch_start", 3, 17, 3),
    ],
)
def test_a_stop_is_obeyed_and_the_run_is_whole(
    hook: str, at: int, steps: int, epochs: int, build: Any, pictures: Any
) -> None:
    bench = build(pictures((32, 32), (4, 4)), **{"training.epochs": 5})
    diary = Diary()
    progress = _with(bench, Stopping(hook, at), diary).run()
    assert progress.finished
    assert (diary.steps, len(bench.recorder.epochs)) == (steps, epochs)
    assert bench.trainer.best is not None
    assert "That is enough." in bench.recorder.messages
    saved = checkpoint.load_newest(bench.trainer.folder)
    assert saved["progress"]["finished"]
    means = [values["train/epoch-accuracy"] for _, values, _ in bench.recorder.epochs]
    assert all(0 <= value <= 1 for value in means), "of the images that were seen"


def test_a_batch_and_the_order_can_be_changed(build: Any, pictures: Any) -> None:
    class Half(Diary):
        def on_epoch_start(self, epoch: int) -> None:
            self.trainer.order = self.trainer.order[:8]

        def before_step(self, batch: Any) -> Any:
            seen.append(batch.positions.tolist())
            return None

    seen: list[Any] = []
    bench = build(pictures((8, 8)), **{"training.epochs": 2, "training.batch_size": 4})
    half = Half()
    progress = _with(bench, half).run()
    assert half.steps == 4
    assert progress.step == 8, "the schedule's place"
    assert len({place for batch in seen[:2] for place in batch}) == 8


def test_a_resumed_run_has_the_states_that_an_uncut_one_has(
    build: Any, pictures: Any, interrupt_at: Any, difference: Any
) -> None:
    samples, changes = pictures((16, 16), (3, 3)), {"training.epochs": 3, "run.log_every": 1}
    whole, cut, again = (build(samples, **changes) for _ in range(3))
    first, second, third = Diary(), Diary(), Diary()
    _with(whole, first).run()
    interrupt_at(cut, 6)
    assert not _with(cut, second).run().finished
    assert second.lines[-2:] == ["save", "end"]
    _with(again, third).restore(checkpoint.load_newest(cut.trainer.folder))
    assert (third.steps, third.lines) == (6, [])
    again.trainer.run()
    assert third.steps == first.steps == 12
    assert third.losses == first.losses
    assert difference(whole.model, again.model) == 0
    assert not again.recorder.warnings


def test_a_state_without_its_callback_is_reported(build: Any, pictures: Any) -> None:
    bench, again = (build(pictures((8, 8)), **{"training.epochs": 1}) for _ in range(2))
    _with(bench, Diary()).run()
    again.trainer.restore(checkpoint.load_newest(bench.trainer.folder))
    (text,) = again.recorder.warnings
    assert "callback 'Diary'" in text
    assert "tellapart.resume(run, callbacks=[...])" in text


def test_two_of_one_class_have_a_state_each(build: Any, pictures: Any) -> None:
    bench, again = (build(pictures((8, 8)), **{"training.epochs": 1}) for _ in range(2))
    one, two = Diary(), Diary()
    two.steps = 100
    _with(bench, one, two).run()
    first, second = Diary(), Diary()
    _with(again, first, second).restore(checkpoint.load_newest(bench.trainer.folder))
    assert (first.steps, second.steps) == (one.steps, 100 + one.steps)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"seen": {1, 2}}, "state_dict()['seen'] is of type set"),
        ({"a": [0, {"b": np.zeros(3)}]}, "state_dict()['a'][1]['b'] is of type ndarray"),
        ({"path": Path("x")}, "['path'] is of type"),
        ({(1, 2): 3}, "has a key of type tuple"),
    ],
)
def test_a_state_that_no_checkpoint_can_hold_is_refused(
    state: Any, where: str, build: Any, pictures: Any
) -> None:
    class Odd(Callback):
        def state_dict(self) -> Any:
            return state

    bench = build(pictures((8, 8)), **{"training.epochs": 1})
    with pytest.raises(TrainingError, match=re.escape(where)):
        _with(bench, Odd()).run()


@pytest.mark.parametrize("wrong", [print, Diary, "diary", None])
def test_what_is_no_callback_is_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"tellapart\.Callback"):
        Callbacks([wrong])


def test_an_error_is_passed_to_the_callbacks(build: Any, pictures: Any) -> None:
    class Broken(Callback):
        def after_step(self, outcome: Any) -> None:
            raise RuntimeError("broken")

    bench, diary = build(pictures((8, 8))), Diary()
    with pytest.raises(RuntimeError, match="broken"):
        _with(bench, diary, Broken()).run()
    assert diary.lines[-1] == "RuntimeError"
    assert "end" not in diary.lines


def test_train_and_resume_take_them(tmp_path: Path, make_folder: Any) -> None:
    """The call that a user makes: stopped in the middle, and gone on with where the callback's state was saved."""
    data = make_folder(tmp_path / "photos", ("a", "b"), 12, ("train", "val"), size=8)

    class Interrupting(Diary):
        name = "mine"

        def after_step(self, outcome: Any) -> None:
            super().after_step(outcome)
            if self.steps == 4:
                self.trainer.interrupt.asked = True

    changes = {"training.epochs": 2, "training.batch_size": 8, "data.cache_dir": str(tmp_path / "cache")}
    changes |= {"run.dir": str(tmp_path / "run"), "model.name": "simple-cnn", "input.size": 8}
    first = Interrupting()
    result = tellapart.train(data, quiet=True, callbacks=[first], **changes)
    assert result.interrupted
    second = Interrupting()
    second.steps = -1
    again = tellapart.resume(result.run, quiet=True, callbacks=[second])
    assert not again.interrupted
    assert second.steps == 6
    assert second.losses[:4] == first.losses
