"""Where the numbers and images of a run go: a CSV file always, TensorBoard and MLflow as extras.

Knows nothing of what the names mean. Names are paths such as ``train/loss`` or ``val/accuracy``, steps count
the optimizer's updates from the start of the run (a value logged at step S was known after S updates).

After an interruption, everything later than the checkpoint's step is logged again, so each tracker gets that step and
drops what it has beyond it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pathlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tellapart import files, packages
from tellapart.errors import RunError

_MLFLOW_SECONDS = 8.0  # seconds that its server may take to answer before a run begins
Pixels = npt.NDArray[np.uint8]


class Tracker(Protocol):
    """The interface of a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log ``values`` by name, as they were after ``step`` updates."""

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Log an image, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Flush and close. Nothing may be logged afterwards."""


class CsvTracker:
    """metrics.csv with the columns name, value, step; each call's rows are handed to the system at once.

    resume_step: None starts a new file. A step keeps the rows up to it and drops the others, and a half-written last
    line (the file is rewritten under another name and renamed); a value that the file already has for exactly that step
    (its name is in ``known``) is not written twice. Images are ignored.
    """

    HEADER = ("name", "value", "step")

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None) -> None:
        kept = [] if resume_step is None else _rows_until(pathlib.Path(path), resume_step)
        self._resume_step = resume_step
        self.known = {name for name, _, step in kept if int(step) == resume_step}
        with files.writing(path, text=True) as stream:
            csv.writer(stream, lineterminator="\n").writerows([self.HEADER, *kept])
        self._stream = files.Appending(path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row for each value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for name, value in values.items():
            if step != self._resume_step or name not in self.known:
                writer.writerow((name, repr(float(value)), int(step)))
        self._stream.write(
            text.getvalue().encode()
        )  # one write, so that a kill can truncate only the last line

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Ignore the image: the file contains numbers."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _rows_until(path: pathlib.Path, last_step: int) -> list[list[str]]:
    """Return the whole rows of a metrics file with a step of at most ``last_step``."""
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    whole = content[: content.rfind("\n") + 1]
    rows = [row for row in csv.reader(io.StringIO(whole, newline="")) if len(row) == 3 and row[2].isdecimal()]
    return [row for row in rows if int(row[2]) <= last_step]


class TensorBoardTracker:
    """TensorBoard events below ``folder``, in a run for each split: ``train/loss`` is ``loss`` of the run ``train``.

    So one chart has the curves of train and validation. Values that would not make a useful curve (`_curves`) are left
    out. resume_step: TensorBoard no longer shows what earlier event files have beyond it; ``known`` are the names that
    already have a value for that step. Needs the extra "tensorboard". Raises MissingPackageError.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        resume_step: int | None = None,
        known: Collection[str] = (),
    ) -> None:
        packages.require("tensorboard", "tensorboard", "Writing TensorBoard events")
        self._folder, self._resume_step, self._known = pathlib.Path(folder), resume_step, frozenset(known)
        self._writers: dict[str, Any] = {}
        # each run drops the values that are logged again, whether it gets new ones or not
        if resume_step is not None:
            for run in sorted(path.name for path in self._folder.glob("*/") if path.is_dir()):
                self._writer(run)

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if self._resume_step is None else self._resume_step + 1
            self._writers[run] = SummaryWriter(os.fspath(self._folder / run), purge_step=purge)
        return self._writers[run]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each value, on disk at once: a kill must not lose values before a checkpoint's step."""
        for name, value in _curves(values).items():
            if step == self._resume_step and name in self._known:
                continue
            run, tag = _run_and_tag(name)
            self._writer(run).add_scalar(tag, value, step)
        for writer in self._writers.values():
            writer.flush()

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Add an image, uint8 [H, W, 3]."""
        run, tag = _run_and_tag(name)
        self._writer(run).add_image(tag, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write and close the event files."""
        for writer in self._writers.values():
            writer.close()


_NO_CURVE = frozenset({"epoch", "best-epoch", "train/epoch-loss", "train/epoch-accuracy"})


def _curves(values: Mapping[str, float]) -> dict[str, float]:
    """Return what is worth a chart: not a straight line, nor the mean of a curve that is there."""
    return {name: float(value) for name, value in values.items() if name not in _NO_CURVE}


def _run_and_tag(name: str) -> tuple[str, str]:
    """Return TensorBoard's run and tag of a value: ``val/loss`` -> validation, loss; ``seconds`` are of training."""
    split, slash, tag = name.partition("/")
    if not slash:
        split, tag = "train", name
    elif split == "final":  # final/test-accuracy
        split, _, tag = tag.partition("-")
        tag = f"final-{tag}"
    return ("validation" if split == "val" else split), tag


def check_mlflow() -> None:
    """Check that MLflow's store answers within ten seconds. Raises RunError with what to do, MissingPackageError."""
    mlflow = _mlflow()
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            mlflow.MlflowClient().search_experiments(max_results=1)
            answer.append(None)
        except Exception as error:  # MLflow raises its own, requests' and the store's errors
            answer.append(error)

    thread = threading.Thread(
        target=ask, daemon=True
    )  # a name server may take minutes, whatever timeout is set
    thread.start()
    thread.join(_MLFLOW_SECONDS)
    if not answer:
        raise _no_mlflow(mlflow, f"no answer within {_MLFLOW_SECONDS:g} seconds")
    if answer[0] is not None:
        raise _no_mlflow(mlflow, answer[0]) from answer[0]


def _mlflow() -> Any:
    """Return the package, with short timeouts, and with a folder as store if it has no database (mlflow-skinny)."""
    for name, value in (("REQUEST_TIMEOUT", "5"), ("REQUEST_MAX_RETRIES", "1")):
        os.environ.setdefault(f"MLFLOW_HTTP_{name}", value)
    mlflow: Any = packages.require("mlflow", "mlflow", "Logging to MLflow")
    chosen = os.environ.get("MLFLOW_TRACKING_URI") or getattr(mlflow, "is_tracking_uri_set", lambda: True)()
    if not chosen and not packages.installed("sqlalchemy"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(pathlib.Path("mlruns").absolute().as_uri())
    return mlflow


def _no_mlflow(mlflow: Any, reason: object) -> RunError:
    with contextlib.suppress(Exception):
        place = str(mlflow.get_tracking_uri())
    said = str(reason).strip().partition("\n")[0][:300].rstrip(".")
    return RunError(
        f"MLflow cannot be used at {place}: {said}. Start its server, set MLFLOW_TRACKING_URI to another place (stores "
        "in databases need the whole package: pip install mlflow), or leave out --run.mlflow."
    )


class MlflowTracker:
    """An MLflow run; needs the extra "mlflow". MLflow's environment variables say where it is kept.

    id_file holds the run's id, so that a resumed run continues the same MLflow run; with ``resume_step`` None a new one
    begins. MLflow cannot delete values: those after the interruption appear twice, with equal steps. params (the
    flattened spec) are logged once. A tracking server that fails must not end hours of training: the first failure is
    reported through ``warn``, and nothing more is sent. Raises MissingPackageError, and RunError if the run cannot be
    opened at all.
    """

    def __init__(
        self,
        id_file: str | os.PathLike[str],
        resume_step: int | None = None,
        params: Mapping[str, Any] | None = None,
        run_name: str | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._mlflow: Any = _mlflow()
        self._warn = warn
        self._failed = False
        path = pathlib.Path(id_file)
        if resume_step is not None and path.is_file():
            self._open(run_id=path.read_text(encoding="utf-8").strip())
            return
        run = self._open(run_name=run_name)
        files.write_text(path, str(run.info.run_id))
        rows = [(name, str(value)[:500]) for name, value in (params or {}).items()]
        # MLflow takes at most 100 parameters of 500 characters at once
        for start in range(0, len(rows), 100):
            self._try(self._mlflow.log_params, dict(rows[start : start + 100]))

    def _open(self, **options: Any) -> Any:
        try:
            return self._mlflow.start_run(**options)
        except Exception as error:
            raise _no_mlflow(self._mlflow, error) from error

    def _try(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        if self._failed:
            return
        try:
            call(*args, **options)
        except Exception as error:  # MLflow raises its own, requests' and the store's errors
            self._failed = True
            if self._warn is not None:
                self._warn(
                    f"MLflow no longer accepts values: {error}. Training continues; metrics.csv has all values."
                )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log each value that makes a curve as a metric."""
        if curves := _curves(values):
            self._try(self._mlflow.log_metrics, curves, step=step)

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Log an image, uint8 [H, W, 3], as the file NAME-STEP.png."""
        self._try(self._mlflow.log_image, pixels, artifact_file=f"{name}-{step:06}.png")

    def close(self) -> None:
        """End the MLflow run, as failed if values could not be sent."""
        status, self._failed = ("FAILED" if self._failed else "FINISHED"), False
        self._try(self._mlflow.end_run, status=status)


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log to each."""
        for tracker in self._trackers:
            tracker.log(step, values)

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Pass the image to each."""
        for tracker in self._trackers:
            tracker.image(step, name, pixels)

    def close(self) -> None:
        """Close each, even if one fails; the first error is raised at the end."""
        errors: list[Exception] = []
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
