"""Tracking: (name, value, step) to CSV, TensorBoard and MLflow, and progress on the console."""

from __future__ import annotations

from tellapart.tracking.console import Busy, Console
from tellapart.tracking.pictures import confusion_image, picture_grid
from tellapart.tracking.trackers import (
    CsvTracker,
    MlflowTracker,
    TensorBoardTracker,
    Tracker,
    Trackers,
    check_mlflow,
)

__all__ = [
    "Busy",
    "Console",
    "CsvTracker",
    "MlflowTracker",
    "TensorBoardTracker",
    "Tracker",
    "Trackers",
    "check_mlflow",
    "confusion_image",
    "picture_grid",
]
