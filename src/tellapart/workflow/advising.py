"""The figures behind the advice at the end of a run, and the files that keep it.

Only training and validation images are used. All of it takes at most `SHARE` of the training time, or `LEAST_SECONDS`
if that is more; what would take longer is left out, and the advice says so. The rules are in `evaluation.advice`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import files, runs, tables
from tellapart.contract import Pixels
from tellapart.contract.decoding import to_shown
from tellapart.data.loader import ImageSet
from tellapart.errors import TellapartError, WriteError
from tellapart.evaluation import advice, label_doubts, learning_curve, ridge
from tellapart.evaluation.advice import Advice, Missing, Told
from tellapart.evaluation.infer import batch_that_pays
from tellapart.evaluation.run_folder import RunFolder, read_run
from tellapart.preprocess import resize
from tellapart.runtime.eager import EagerBackend
from tellapart.tracking import Console
from tellapart.training import budget
from tellapart.training.run_data import RunData
from tellapart.training.step import Way
from tellapart.workflow import larger_input

SHARE, LEAST_SECONDS = 0.05, 10.0
MOST_SUSPECTS = 20
NO_VAL = "there are no validation images"
_MOST_DOUBTED = 8000  # images whose labels are examined
_LEAST = 50  # validation images, below which hardly any difference is more than chance

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Time:
    """The time that the measurements may take together."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock, self._begun = seconds, clock, clock()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begun

    def left(self, share: float = 1.0) -> float:
        """Return how many seconds a measurement may take that has this share of all, or what is left of it."""
        return max(0.0, min(self.seconds * share, self.seconds - self.spent))


@dataclass(frozen=True)
class Finished:
    """A run that is trained and measured: its folder, images, model, and the way in which it was trained last."""

    folder: Path
    prepared: RunData
    backend: EagerBackend
    way: Way | None = None


def advise(run: Finished, console: Console) -> Advice | None:
    """Measure what would help, write advice.json and the suspected labels, and return it.

    None where it could not be measured, which is said: it never keeps a run from ending.
    """
    try:
        folder = read_run(run.folder)
        seconds = max(LEAST_SECONDS, SHARE * (folder.seconds or 0.0))
        if whole := run.prepared.spec.time_limit:
            seconds = min(seconds, budget.for_advice(whole))
        limit = Time(seconds)
        console.message("Measuring what would help most; --run.no-advice leaves it out.")
        told, doubted = _measured(run, folder, limit)
        found = advice.ranked(told, limit.spent)
        _write_suspects(run, doubted)
        runs.write_json(run.folder / advice.FILE_NAME, found.to_dict())
    except WriteError:
        raise
    except (TellapartError, RuntimeError, ValueError, ArithmeticError, MemoryError, OSError) as error:
        console.message(f"What would help most could not be measured: {error}")
        return None
    return found


Doubted = tuple[ImageSet, Rows, label_doubts.Doubts]
"""Images, those of their rows that were examined, and what was found."""


def _measured(run: Finished, folder: RunFolder, limit: Time) -> tuple[list[Told], list[Doubted]]:
    """Return the advice of each kind, and the images whose labels are doubted."""
    prepared, val = run.prepared, run.prepared.val
    curve: Told = Missing(advice.TIME, NO_VAL)
    if val is not None:
        curve = advice.by_curve(_curve(folder))
    if prepared.train.samples.targets is not None:
        return [curve, *_all_missing("not for images that can have several labels")], []
    if val is None:
        return [curve, *_all_missing(NO_VAL)], []
    if prepared.spec.model.finetune == "head":
        told, doubted = _frozen(run, val, limit)
    else:
        told, doubted = _trained(run, folder, val, limit)
    return [*told, curve, _larger(run, val, limit)], doubted


def _all_missing(why: str) -> list[Told]:
    return [Missing(title, why) for title in (advice.IMAGES, advice.LABELS, advice.SIZE)]


def _curve(folder: RunFolder) -> advice.Curve:
    """Return the losses of the run's epochs."""
    known = folder.metrics
    val = dict(known.get("val/loss", ()))
    train = dict(known.get("train/epoch-loss", ()))
    steps = [step for step in sorted(val) if step in train]
    kept = folder.best_epoch or 0
    patience = int(folder.field("training.patience") or 0)
    early = bool(patience) and folder.epochs < int(folder.field("training.epochs") or 0)
    finite = [step for step in steps if math.isfinite(val[step]) and math.isfinite(train[step])]
    accuracies = [value for _, value in sorted(known.get("val/accuracy", ()))]
    perfect = 0 < kept <= len(accuracies) and accuracies[kept - 1] >= 1
    losses = (tuple(train[step] for step in finite), tuple(val[step] for step in finite))
    return advice.Curve(*losses, kept, early, perfect)


def _frozen(run: Finished, val: ImageSet, limit: Time) -> tuple[list[Told], list[Doubted]]:
    """Return what features of the frozen backbone tell: the learning curve, and doubted labels of both splits."""
    train, classes = run.prepared.train, run.prepared.classes
    if run.way is not None and run.way.val is not None:
        rows, features = np.arange(len(train)), _kept(run.way.train)
        val_rows, val_features = np.arange(len(val)), _kept(run.way.val)
    else:
        val_rows, _, val_features = _answers(run, val, limit.left(0.15), True)
        rows, _, features = _answers(run, train, limit.left(0.45), True)
    labels, val_labels = train.samples.labels[rows], val.samples.labels[val_rows]
    if len(rows) * learning_curve.PARTS[0] < learning_curve.LEAST:
        why = f"{len(rows)} training images are too few, or more take too long"
        return [Missing(advice.IMAGES, why), Missing(advice.LABELS, why)], []
    told: list[Told] = []
    growth = learning_curve.measure(
        (features, labels), (val_features, val_labels), len(classes), limit.left(0.4)
    )
    if growth is None:
        told.append(Missing(advice.IMAGES, "a learning curve would take too long"))
    else:
        told.append(advice.by_growth(growth, classes))
    some = np.random.default_rng(0).permutation(len(rows))[:_MOST_DOUBTED]
    features, labels, rows = features[some], labels[some], rows[some]
    targets = ridge.indicators(labels, len(classes))
    head = ridge.fit(features, targets, ridge.choose_strength(features, targets))
    scores = np.concatenate([head.left_out, head.scores(val_features)])
    if len(scores) < label_doubts.LEAST:
        return [*told, _too_few_labels(len(scores))], []
    doubts = label_doubts.find(scores, np.concatenate([labels, val_labels]))
    told.append(advice.by_doubts(doubts, "training and validation"))
    return told, [
        (train, rows, _part(doubts, 0, len(rows))),
        (val, val_rows, _part(doubts, len(rows), len(scores))),
    ]


def _trained(
    run: Finished, folder: RunFolder, val: ImageSet, limit: Time
) -> tuple[list[Told], list[Doubted]]:
    """Return what answers tell: the gap between training and validation images, and doubted labels of validation."""
    rows, logits, _ = _answers(run, val, limit.left(0.25))
    seen, known, _ = _answers(run, run.prepared.train, limit.left(0.25))
    labels = val.samples.labels[rows]
    right = int((logits.argmax(1) == labels).sum()) if len(rows) else 0
    learned = int((known.argmax(1) == run.prepared.train.samples.labels[seen]).sum()) if len(seen) else 0
    told: list[Told] = []
    if min(len(rows), len(seen)) < _LEAST:
        few = f"{len(seen)} training and {len(rows)} validation images were answered, and a gap takes {_LEAST} of both"
        told.append(Missing(advice.IMAGES, few))
    else:
        weak = _weak(folder, run.prepared.classes)
        told.append(advice.by_gap(advice.Gap((learned, len(seen)), (right, len(rows))), weak))
    if len(rows) < label_doubts.LEAST:
        return [*told, _too_few_labels(len(rows))], []
    doubts = label_doubts.find(logits, labels)
    return [*told, advice.by_doubts(doubts, "validation")], [(val, rows, doubts)]


def _weak(folder: RunFolder, classes: Sequence[str]) -> list[str]:
    """Return the classes that validation shows to be weaker than the rest."""
    figures = folder.evaluations.get("val")
    confusion = figures.confused() if figures else None
    return [] if confusion is None else advice.weak_classes(confusion, classes)


def _too_few_labels(count: int) -> Missing:
    return Missing(advice.LABELS, f"it takes {label_doubts.LEAST} images, and {count} were answered")


def _part(doubts: label_doubts.Doubts, start: int, stop: int) -> label_doubts.Doubts:
    """Return the doubts about some of the images, counted from the first of them."""
    inside = [place for place, row in enumerate(doubts.rows) if start <= row < stop]
    return label_doubts.Doubts(
        doubts.images,
        doubts.share,
        doubts.interval,
        doubts.ratio,
        tuple(doubts.rows[place] - start for place in inside),
        tuple(doubts.chances[place] for place in inside),
        tuple(doubts.answers[place] for place in inside),
    )


def _kept(images: ImageSet) -> Floats:
    """Return the features of a set that has them in place of images (the first view), float32 [N, F]."""
    assert images.store.images_NHWC is not None
    values = np.asarray(images.store.images_NHWC[:, 0].cpu().numpy(), np.float32)[images.rows]
    if values.ndim == 4:  # a map [N, C, H, W]
        return np.ascontiguousarray(values.mean((2, 3)))
    return values if values.ndim == 2 else values.reshape(len(values), -1, values.shape[-1]).mean(1)


def _answers(
    run: Finished, images: ImageSet, seconds: float, features: bool = False
) -> tuple[Rows, Floats, Floats]:
    """Return which of the images could be answered in the time, chosen at random, their logits, and their features.

    The features are float32 [n, F], or [n, 0] where they are not asked for.
    """
    order = np.random.default_rng(0).permutation(len(images))
    limit, done = Time(seconds), 0
    logits, found = [], []
    for part, pixels in _in_parts(run, images, order):
        both = run.backend.with_features(pixels) if features else (run.backend.logits(pixels), None)
        logits.append(both[0])
        found.append(both[1] if both[1] is not None else np.zeros((len(part), 0), np.float32))
        done += len(part)
        if limit.spent * (done + len(part)) / done > seconds:
            break
    empty = np.zeros((0, 0), np.float32)
    return order[:done], np.concatenate(logits or [empty]), np.concatenate(found or [empty])


def _in_parts(run: Finished, images: ImageSet, order: Rows) -> Iterator[tuple[Rows, Pixels]]:
    """Yield rows in batches, with their images as the contract defines them."""
    contract = run.backend.card.preprocessing
    size = batch_that_pays(contract.size, run.backend.predictor.device)
    size = min(size, max(8, len(order) // 8))  # so that the time is looked at a few times
    whole = images is run.prepared.val or not run.prepared.augment.needs_large_source
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        if whole:
            yield rows, images.batch(rows).pixels.cpu().numpy()
        else:
            sources = (images.store.image(int(images.rows[row])) for row in rows)
            yield rows, np.stack([resize(image, contract) for image in sources])


def _larger(run: Finished, val: ImageSet, limit: Time) -> Told:
    """Return whether a larger input would help."""
    if len(val) < _LEAST:
        return Missing(advice.SIZE, f"{len(val)} validation images are too few")
    seconds = limit.left(0.4)
    sized = larger_input.measure(run.backend, val, run.prepared.spec.data, seconds)
    return advice.by_size(sized) if isinstance(sized, advice.Sized) else sized


def _write_suspects(run: Finished, doubted: Sequence[Doubted]) -> None:
    """Write the suspected labels, the likeliest first, and their pictures; none where the share may be chance."""
    found = [
        (chance, images, int(rows[row]), answer)
        for images, rows, doubts in doubted
        if doubts.ratio > label_doubts.SURE
        for row, chance, answer in zip(doubts.rows, doubts.chances, doubts.answers, strict=True)
    ]
    found.sort(key=lambda one: -one[0])
    if not found:  # what an earlier end of the same run suspected no longer holds
        shutil.rmtree(run.folder / advice.SUSPECTS, ignore_errors=True)
        (run.folder / advice.SUSPECTS_FILE).unlink(missing_ok=True)
        return
    classes = run.prepared.classes
    entries: list[dict[str, Any]] = []
    with files.workplace(run.folder) as fresh:
        (fresh / advice.SUSPECTS).mkdir()
        for number, (chance, images, row, answer) in enumerate(found[:MOST_SUSPECTS], 1):
            samples, name = images.samples, f"{number:02}.png"
            _picture(images.store.image(int(images.rows[row])), fresh / advice.SUSPECTS / name)
            label = classes[int(samples.labels[row])]
            entry = {"path": str(samples.paths[row]), "split": str(samples.splits[row]), "label": label}
            entries.append({"image": name, **entry, "predicted": classes[answer], "confidence": chance})
        _write_json(fresh / advice.SUSPECTS / "index.json", entries)
        _write_table(fresh / advice.SUSPECTS_FILE, entries)
        files.move([(fresh / name, run.folder / name) for name in (advice.SUSPECTS, advice.SUSPECTS_FILE)])


def _picture(pixels: Pixels, path: Path) -> None:
    from PIL import Image

    Image.fromarray(to_shown(pixels)).save(path)


def _write_json(path: Path, content: Any) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as stream:
        json.dump(content, stream, indent=1)


def _write_table(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = tables.Writer(stream)
        writer.writerow(["path", "split", "label", "suggested", "chance"])
        for one in entries:
            writer.writerow(
                [one["path"], one["split"], one["label"], one["predicted"], f"{one['confidence']:.3f}"]
            )
