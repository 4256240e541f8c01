"""From a spec and samples to a plan: images, statistics, network, figures of validation, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sklearn.metrics
import torch

import tellapart
from tellapart.data.samples import Samples
from tellapart.errors import DataError, SpecError
from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.task import Classification

SPEC = update(Spec(), {"model.name": "simple-cnn", "augment.preset": "none", "training.device": "cpu"})
FLAGS: dict[str, Any] = {
    "model.name": "simple-cnn",
    "model.dropout": 0.2,
    "training.epochs": 3,
    "training.batch_size": 8,
    "training.device": "cpu",
    "input.size": 8,
    "training.threads": 1,
    "training.lr": 0.002,
    "run.tensorboard": False,
    "run.report": False,
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Give back the threads that a run with training.threads sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _prepare(samples: Samples, **changes: Any) -> setup.RunData:
    """As ``setup.prepare``, with the images' own size where they are in memory and no other is given."""
    own = {} if samples.pixels is None else {"input.size": samples.pixels.shape[1]}
    return setup.prepare(update(SPEC, {**own, **changes}), samples, lambda count: None)


def _plan(prepared: setup.RunData, rank: int = 0, world: int = 1) -> Any:
    model, _, _ = setup.build_model(prepared)
    processes = Processes(rank, world, torch.device("cpu"))
    return setup.plan(setup.complete(prepared, model, processes), model, processes)


# ------------------------------------------------------------------------------------ prepare


def test_statistics_are_those_of_the_training_images(pictures: Callable[..., Samples]) -> None:
    samples = pictures((9, 9), (30, 30))
    prepared = _prepare(samples)
    train = samples.pixels[samples.keys[samples.splits == "train"]] / 255
    assert prepared.contract.mean == pytest.approx(train.mean((0, 1, 2)), abs=1e-4)
    assert prepared.contract.std == pytest.approx(train.std((0, 1, 2)), abs=1e-4)
    assert prepared.spec.input.mean == prepared.contract.mean == prepared.augment.contract.mean


def test_given_statistics_stay(pictures: Callable[..., Samples]) -> None:
    prepared = _prepare(pictures(), **{"input.mean": (0.5,), "input.std": (0.25,)})
    assert prepared.contract.mean == (0.5,) * 3
    assert prepared.contract.std == (0.25,) * 3
    half = _prepare(pictures(), **{"input.mean": (0.5, 0.4, 0.3)})
    assert half.contract.mean == (0.5, 0.4, 0.3)
    assert half.contract.std == _prepare(pictures()).contract.std


def test_each_split_is_prepared_by_itself(pictures: Callable[..., Samples]) -> None:
    prepared = _prepare(pictures((5, 4), (3, 2), (1, 2)))
    assert [len(part) for part in (prepared.train, prepared.val, prepared.test) if part] == [9, 5, 3]
    assert set(prepared.val.samples.splits) == {"val"}
    assert prepared.classes == ("class 0", "class 1")
    assert prepared.bad == ()
    alone = _prepare(pictures((5, 4)))
    assert alone.val is None
    assert alone.test is None


def test_one_class_is_refused(pictures: Callable[..., Samples]) -> None:
    with pytest.raises(DataError, match=r"class 0.*needs two"):
        _prepare(pictures((5,)))


def test_no_training_images_is_refused(pictures: Callable[..., Samples]) -> None:
    with pytest.raises(DataError, match="no training images"):
        _prepare(pictures((0, 0), (3, 3)))


def _files(root: Path, bad: dict[str, tuple[str, ...]]) -> Samples:
    """Six pictures in two splits, of which those named in ``bad`` are text."""
    from PIL import Image

    rng, paths, splits = np.random.default_rng(0), [], []
    for split in ("train", "val"):
        for name in ("0.png", "1.png", "2.png"):
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in bad.get(split, ()):
                path.write_text("<html>not found</html>")
            else:
                Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(path)
            paths.append(f"{split}/{name}")
            splits.append(split)
    return Samples(
        paths=np.array(paths, dtype=object),
        labels=np.array([0, 1, 0, 0, 1, 0]),
        splits=np.array(splits, dtype=object),
        classes=("a", "b"),
        root=str(root),
    )


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    samples = _files(tmp_path, {"train": ("1.png",), "val": ("0.png",)})
    prepared = _prepare(samples, **{"data.cache_dir": str(tmp_path / "cache")})
    assert [bad.path for bad in prepared.bad] == ["train/1.png", "val/0.png"]
    assert all(bad.reason for bad in prepared.bad)
    assert list(prepared.train.samples.paths) == ["train/0.png", "train/2.png"]
    assert len(prepared.val) == 2
    with pytest.raises(DataError, match=r"1\.png"):
        _prepare(samples, **{"data.cache_dir": str(tmp_path / "cache"), "data.on_bad_image": "error"})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_readable_image_is_refused(split: str, tmp_path: Path) -> None:
    samples = _files(tmp_path, {split: ("0.png", "1.png", "2.png")})
    with pytest.raises(DataError, match=r"[Nn]one of the"):
        _prepare(samples, **{"data.cache_dir": str(tmp_path / "cache")})


def test_resized_crops_get_sources_larger_than_the_input(tmp_path: Path) -> None:
    samples = _files(tmp_path, {})
    changes = {"data.cache_dir": str(tmp_path / "cache"), "input.size": 6, "augment.crop": "resized"}
    prepared = _prepare(samples, **changes)
    assert prepared.train.batch(np.arange(3)).images.shape[1:3] == (7, 7)  # 1.15 * 6, from 9
    assert prepared.val.batch(np.arange(3)).images.shape[1:3] == (6, 6)


# ------------------------------------------------------------------------------------ the network


def test_the_seed_chooses_the_first_weights(pictures: Callable[..., Samples]) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(99)  # what was drawn before plays no part
        torch.rand(seed + 3)
        model, architecture, info = setup.build_model(_prepare(pictures(), seed=seed))
        assert info is None
        assert (architecture.num_classes, architecture.channels, architecture.size) == (3, 3, 8)
        return model.head.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("finetune", ["head", "staged"])
def test_fine_tuning_needs_weights(finetune: str, pictures: Callable[..., Samples]) -> None:
    with pytest.raises(SpecError, match=r"model\.finetune.*--model\.weights"):
        setup.build_model(_prepare(pictures(), **{"model.finetune": finetune}))


def test_a_mistake_in_the_spec_leaves_no_run_folder(tmp_path: Path, make_folder: Any) -> None:
    """Or the corrected command would be refused: its folder is not empty."""
    data, run = make_folder(tmp_path / "data", count=4), tmp_path / "run"
    for mistake in (
        {"model.finetune": "head"},
        {"training.warmup_epochs": 9.0},
        {"training.betas": (1.0, 0.9)},
    ):
        with pytest.raises(SpecError):
            tellapart.train(data, quiet=True, **{**FLAGS, "run.dir": str(run), **mistake})
        assert not run.exists() or not any(run.iterdir()), mistake


# ------------------------------------------------------------------------------------ the plan


@pytest.mark.parametrize(
    ("sampling", "images"), [("shuffle", 23), ("oversample", 36), ("undersample", 9), ("weighted", 23)]
)
def test_an_epoch_has_as_many_steps_as_its_images_need(
    sampling: str, images: int, pictures: Callable[..., Samples]
) -> None:
    changes = {"training.sampling": sampling, "training.batch_size": 4}
    plan = _plan(_prepare(pictures((12, 8, 3)), **changes))
    assert plan.steps_per_epoch == -(-images // 4)


@pytest.mark.parametrize("sampling", ["oversample", "undersample", "weighted"])
@pytest.mark.parametrize("method", ["inverse", "effective"])
@pytest.mark.parametrize("seed", range(4))
def test_class_weights_do_not_favour_what_sampling_balances(
    sampling: str, method: str, seed: int, pictures: Callable[..., Samples]
) -> None:
    """All weights are 1 then, whatever was drawn; a class that an epoch happens to miss has no weight of 0."""
    samples = pictures((6, 1, 1, 1, 1, 1))
    changes = {"training.sampling": sampling, "training.class_weights": method, "seed": seed}
    plan = _plan(_prepare(samples, **changes))
    logits, labels = torch.randn(6, 6), torch.arange(6)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(plan.task.criterion(logits, labels), expected, atol=1e-5)


def test_validation_is_scikit_learns(pictures: Callable[..., Samples]) -> None:
    prepared = _prepare(pictures((10, 10, 10), (8, 5, 2), noise=90))
    plan = _plan(prepared)
    for _ in range(3):
        plan.model.train()  # the figures are those of evaluation mode, whatever it was before
        scores = plan.validate(plan.model)
    val = prepared.val.samples
    pixels = torch.from_numpy(np.stack([val.read(row) for row in range(len(val))])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (prepared.contract.mean, prepared.contract.std))
    with torch.no_grad():
        logits = plan.model.eval()((pixels - mean) / std)
    guess = logits.argmax(1).numpy()
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(val.labels, guess))
    assert scores["macro-f1"] == pytest.approx(sklearn.metrics.f1_score(val.labels, guess, average="macro"))
    balanced = sklearn.metrics.balanced_accuracy_score(val.labels, guess)
    assert scores["balanced-accuracy"] == pytest.approx(balanced)
    loss = sklearn.metrics.log_loss(val.labels, logits.double().softmax(1).numpy())
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)


def test_processes_share_validation_without_gaps_or_repeats(
    pictures: Callable[..., Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = _prepare(pictures((4, 4, 4), (5, 5, 3)))
    whole = _plan(prepared)
    expected = whole.validate(whole.model)
    for world in (2, 3, 20):  # more processes than images, too
        parts = []
        for rank in range(world):
            monkeypatch.setattr(Processes, "gather", lambda self, value: [value])
            monkeypatch.setattr(
                "tellapart.evaluation.metrics.quick", lambda logits, labels: {"logits": logits}
            )
            monkeypatch.setattr(Classification, "each", lambda self, logits, labels: None)
            try:
                parts.append(_plan(prepared, rank, world).validate(whole.model)["logits"])
            except (RuntimeError, ValueError):  # nothing to join: this one had no image
                parts.append(torch.empty(0, 3))
        monkeypatch.undo()
        labels = torch.from_numpy(prepared.val.samples.labels)
        from tellapart.evaluation import metrics

        joined = torch.cat(parts)
        assert len(joined) == 13
        assert metrics.quick(joined, labels) == pytest.approx(expected, abs=1e-6)


def test_convolutions_lie_in_the_order_that_is_asked_for(pictures: Callable[..., Samples]) -> None:
    for wanted in (True, False):
        prepared = _prepare(pictures(size=32), **{"speed.channels_last": wanted, "training.batch_size": 64})
        plan = _plan(prepared)
        weight = plan.model.block2.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == wanted
        assert weight.is_contiguous() != wanted


def test_a_plan_draws_nothing(pictures: Callable[..., Samples]) -> None:
    prepared = _prepare(pictures(), **{"model.batch_norm": True, "model.dropout": 0.5})
    model, _, _ = setup.build_model(prepared)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    processes = Processes(0, 1, torch.device("cpu"))
    setup.plan(setup.complete(prepared, model, processes), model, processes)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


# ------------------------------------------------------------------------------------ a run, whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_folder: Any) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    return make_folder(root / "data", count=14, splits=("train", "val", "test"), size=8)


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    runs = {}
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        torch.manual_seed(len(runs))
        result = tellapart.train(folder, quiet=True, seed=seed, **{**FLAGS, "run.dir": str(tmp_path / name)})
        runs[name] = result.artifact.read_bytes()
    assert runs["one"] == runs["two"]
    assert runs["one"] != runs["other"]
    words = [word for name, value in FLAGS.items() if value is not False
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    words += ["--run.no-tensorboard", "--run.no-report", "--seed", "3", "--run.dir", "three"]
    done = run_cli("train", str(folder), *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "three" / "model.safetensors").read_bytes() == runs["one"]


def _rows(run: Path) -> dict[str, list[tuple[int, float]]]:
    rows: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.csv").read_text().splitlines()[1:]:
        name, value, step = line.split(",")
        rows.setdefault(name, []).append((int(step), float(value)))
    return rows


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "balanced-accuracy", "loss"])
def test_the_artifact_is_the_best_epochs(metric: str, folder: Path, tmp_path: Path) -> None:
    """The artifact is of an epoch within one standard error of the highest; evaluating it gives that epoch's figures."""
    changes = {**FLAGS, "training.epochs": 5, "training.best_metric": metric, "training.lr": 0.01}
    result = tellapart.train(folder, quiet=True, **{**changes, "run.dir": str(tmp_path / "run")})
    rows = _rows(result.run)
    values = [value for _, value in rows[f"val/{metric}"]]
    assert len(values) == 5
    from tellapart import artifact

    card = artifact.read_card(result.run)
    best = card.scores["epoch"] - 1
    evaluation = tellapart.evaluate(result.run, split="val", quiet=True)
    if metric == "loss":
        assert best == int(np.argmin(values))
    elif metric == "accuracy":
        highest, n = max(values), int(evaluation.confusion.sum())
        near = [
            k for k, value in enumerate(values) if value >= highest - (highest * (1 - highest) / n) ** 0.5
        ]
        assert best == near[-1]
    for name, value in (
        ("accuracy", evaluation.accuracy),
        ("loss", evaluation.loss),
        ("balanced-accuracy", evaluation.balanced_accuracy),
        ("macro-f1", evaluation.macro.f1),
    ):
        assert value == pytest.approx(rows[f"val/{name}"][best][1], abs=1e-5), name
    assert card.scores["val"]["accuracy"] == evaluation.accuracy


def test_without_validation_test_is_read_once_at_the_end(
    tmp_path: Path, make_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(tmp_path / "data", count=10, splits=("train", "test"), size=8)
    from tellapart.workflow import finishing

    measured: list[str] = []
    evaluate_set = finishing.evaluate_set

    def counted(predictor: Any, images: Any, split: str, *rest: Any, **more: Any) -> Any:
        measured.append(split)
        return evaluate_set(predictor, images, split, *rest, **more)

    monkeypatch.setattr(finishing, "evaluate_set", counted)
    changes = {**FLAGS, "data.val_fraction": 0.0, "run.dir": str(tmp_path / "run")}
    result = tellapart.train(data, quiet=True, **changes)
    assert measured == ["test"]
    assert result.split == "test"
    assert result.metrics["n"] == 30
    assert not [name for name in _rows(result.run) if name.startswith("val/")]
    newest = sorted((result.run / "checkpoint").glob("*.pt"))[-1]
    last = torch.load(newest, weights_only=True)["model"]
    saved = safetensors.torch.load_file(result.artifact)
    assert saved.keys() == last.keys()
    for name, value in saved.items():
        assert torch.equal(value, last[name]), name


def test_a_finished_run_gives_its_result_again(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = tellapart.train(folder, quiet=True, **{**FLAGS, "run.dir": str(run)})
    before, metrics = first.artifact.read_bytes(), (run / "metrics.csv").read_text()
    again = tellapart.resume(run, quiet=True)
    assert dict(again.metrics) == dict(first.metrics)
    assert again.artifact.read_bytes() == before
    assert (run / "metrics.csv").read_text() == metrics


def test_resume_finds_weights_that_were_given_relative_to_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_weights: Any
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "start.pth").write_bytes(saved_weights().read_bytes())
    monkeypatch.chdir(here)
    changes = {
        **FLAGS,
        "model.weights": "start.pth",
        "model.finetune": "head",
        "run.dir": str(tmp_path / "run"),
    }
    tellapart.train(folder, quiet=True, **changes)
    monkeypatch.chdir(tmp_path)
    assert tellapart.resume(tmp_path / "run", quiet=True).metrics["n"] == 42


def test_other_data_under_the_same_name_is_not_resumed(tmp_path: Path, make_folder: Any) -> None:
    from PIL import Image

    from tellapart.errors import RunError

    data = make_folder(tmp_path / "data", count=8, splits=("train", "val"), size=8)
    run = tmp_path / "run"
    tellapart.train(data, quiet=True, **{**FLAGS, "run.dir": str(run)})
    Image.new("RGB", (8, 8), "red").save(data / "train" / "bee" / "003.png")
    with pytest.raises(RunError, match=r"bee/003\.png"):
        tellapart.resume(run, quiet=True)
    (data / "train" / "bee" / "003.png").unlink()
    with pytest.raises(RunError, match="data"):
        tellapart.resume(run, quiet=True)
    assert not (run / "samples.csv.now").exists()


def test_find_lr_suggests_a_rate_at_which_the_network_learns(folder: Path, tmp_path: Path) -> None:
    changes = {**FLAGS, "model.dropout": 0.0, "training.optimizer": "sgd", "augment.preset": "none"}
    before = set(tmp_path.iterdir())
    curve = tellapart.find_lr(folder, quiet=True, steps=60, **changes)
    assert set(tmp_path.iterdir()) == before
    assert curve.suggestion is not None
    assert 1e-5 < curve.suggestion < 1
    assert np.isfinite(curve.losses).all()
    assert min(curve.smoothed) < curve.smoothed[0] * 0.8
    # Training at the suggestion ends with a lower loss than at a hundredth of it.
    losses = []
    for place, lr in enumerate((curve.suggestion, curve.suggestion / 100)):
        run = tmp_path / f"run{place}"
        tellapart.train(folder, quiet=True, **{**changes, "training.lr": lr, "run.dir": str(run)})
        losses.append(_rows(run)["train/epoch-loss"][-1][1])
    assert losses[0] < losses[1]
