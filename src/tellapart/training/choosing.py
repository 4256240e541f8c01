"""Which epoch's weights are kept, and when training stops early: two rules over the validation figures.

The kept epoch is the last whose figure is within one standard error of the highest so far (Breiman et al. 1984 choose
so among trees). On a small validation split the highest of several figures is mostly the luckiest, and the later epoch
is as good there and better elsewhere. If a later epoch has the same figure, the lower loss decides. Early stopping is
Keras' and Lightning's rule. An epoch whose validation loss is not a finite number is never chosen.

Knows nothing of weights, files or logging.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from tellapart import numerals
from tellapart.evaluation import ordinal
from tellapart.spec import TrainingSpec
from tellapart.training.progress import Progress

_SAME = 1e-12
CHANCE = 1.0  # standard errors that a difference must exceed so as not to be called chance
_PROPORTIONS = ("accuracy", "macro-f1", "balanced-accuracy")  # of images, or means of such over the classes


def standard_error(metric: str, value: float, counts: npt.NDArray[np.int64]) -> float:
    """Return the standard error of a figure measured on ``counts`` images of each class, int64 [K].

    0 for the loss, and for figures that are neither a proportion nor of grades. Quadratic kappa is an intraclass
    correlation (Fleiss and Cohen 1973), so its error is taken as that of a correlation, (1 - kappa^2) / sqrt(n); the
    mean absolute error is a mean of counts, mostly 0 and 1, so its own as that of counts (Poisson), sqrt(mae / n).

    For a proportion a success and a failure are added, so that 36 right of 36 is not certainty. Macro F1 and the
    balanced accuracy are means over the classes: few images of one class make them as uncertain as that class is.
    """
    counts = counts[counts > 0]
    total = int(counts.sum())
    if metric in ordinal.QUICK and total:
        return (1 - value**2 if metric == "kappa" else math.sqrt(abs(value))) / math.sqrt(total)
    if metric not in _PROPORTIONS or not total:
        return 0.0
    p = (min(max(value, 0.0), 1.0) * total + 1) / (total + 2)
    images = total if metric == "accuracy" else len(counts) ** 2 / float((1 / counts).sum())
    return math.sqrt(p * (1 - p) / images)


def surpasses(before: npt.NDArray[np.bool_], now: npt.NDArray[np.bool_]) -> bool:
    """Return whether more images are answered rightly than before, by more than chance; bool [N] each.

    Only images on which the two differ say anything: of b + c of them, b right only now and c only before, b - c has
    the standard error sqrt(b + c) where neither is better (McNemar 1947).
    """
    gained, lost = int((now & ~before).sum()), int((before & ~now).sum())
    return gained - lost > CHANCE * math.sqrt(gained + lost)


def surely_lower(before: npt.NDArray[np.float32], now: npt.NDArray[np.float32]) -> bool:
    """Return whether the losses of the same images, float32 [N], are lower now by more than chance.

    The mean of each image's difference is compared with its standard error. It sees more than right and wrong: of 51
    images five may be gained and five lost where a thousand others show nine points more.
    """
    gained = before.astype(np.float64) - now
    if len(gained) < 2 or not np.isfinite(gained).all():
        return False
    return bool(gained.mean() > CHANCE * gained.std(ddof=1) / math.sqrt(len(gained)))


class Chooser:
    """Judges each epoch's validation figures; its state is in the progress, so a checkpoint has it.

    ``counts``: validation images of each class, int64 [K]; None without validation, where the last epoch counts.
    ``lower``: the figures for which lower is better.
    """

    def __init__(
        self, spec: TrainingSpec, counts: npt.NDArray[np.int64] | None, lower: Collection[str] = ("loss",)
    ) -> None:
        self.metric = "accuracy" if spec.best_metric == "auto" else spec.best_metric
        self.patience, self.min_delta = spec.patience, spec.min_delta
        self.falls = self.metric in lower
        self.counts = np.zeros(0, np.int64) if counts is None else counts

    def judge(self, progress: Progress, scores: Mapping[str, float], may: bool = True) -> bool:
        """Note an epoch's figures; return whether its weights replace those kept before, which they ``may``."""
        if not scores:
            return self._take(progress, -math.inf, math.inf, scores)
        loss = scores.get("loss", 0.0)
        value = -scores[self.metric] if self.falls else scores[self.metric]
        if not (math.isfinite(loss) and math.isfinite(value)):
            progress.stale += 1
            # Something has to be kept until there is an epoch with a finite loss.
            return progress.highest == -math.inf and self._take(progress, -math.inf, math.inf, scores)
        if value - self.min_delta > progress.reference:
            progress.reference, progress.reference_epoch, progress.stale = value, progress.epoch, 0
        else:
            progress.stale += 1
        if value > progress.highest:
            progress.highest, progress.highest_epoch = value, progress.epoch
        if not may or value < progress.highest - self._error(progress) - _SAME:
            return False
        same = abs(value - progress.best_value) <= _SAME
        if same and loss > progress.best_loss:
            return False
        return self._take(progress, value, loss, scores)

    def better(self, value: float, reference: float) -> bool:
        """Return whether a figure is better than another one by more than a standard error.

        For figures of several labels that is the error of a proportion of each class's images, which is on the wide
        side.
        """
        kind = "macro-f1" if self.metric in ("mAP", "micro-f1") else self.metric
        gained = reference - value if self.falls else value - reference
        return gained > CHANCE * standard_error(kind, reference, self.counts)

    def stops(self, progress: Progress) -> str:
        """Return why training stops after this epoch, or an empty text if it continues."""
        if not self.patience or progress.stale < self.patience:
            return ""
        what = "fall" if self.falls else "rise"
        more = f" by more than {numerals.setting(self.min_delta)}" if self.min_delta else ""
        since = f" since epoch {progress.reference_epoch + 1}" if progress.reference_epoch >= 0 else ""
        before = f" ({self._figure(progress.reference)})" if since else ""
        return (
            f"Stopped early: validation {self.metric} did not {what}{more} for {progress.stale} "
            f"epoch{'s' * (progress.stale != 1)}{since}{before}."
        )

    def explain(self, progress: Progress, reference: int = -1) -> str:
        """Return which epoch was chosen and why; empty if there was nothing to choose.

        ``reference``: the epoch that the others had to surpass.
        """
        if progress.highest_epoch < 0:
            return ""
        if progress.best_epoch == reference != progress.highest_epoch:
            best = self._figure(progress.highest)
            return (
                f"Epoch {reference + 1}, the fitted head, is kept: validation {self.metric} "
                f"{self._figure(progress.best_value)}. With all layers it was {best} at best (epoch "
                f"{progress.highest_epoch + 1}), which is not better by more than chance on "
                f"{int(self.counts.sum()):,} images."
            )
        chosen, highest = progress.best_epoch, progress.highest_epoch
        figure = self._figure(progress.best_value)
        if chosen == highest:
            kind = "lowest" if self.falls else "highest"
            return f"Epoch {chosen + 1} is kept: validation {self.metric} {figure}, the {kind}."
        if progress.best_value == progress.highest:
            return (
                f"Epoch {chosen + 1} is kept: validation {self.metric} {figure}, as in epoch {highest + 1}, and a loss "
                "that is no higher."
            )
        figures = numerals.percent if self.metric in _PROPORTIONS else numerals.loss
        error, best = figures(self._error(progress)), "lowest" if self.falls else "highest"
        return (
            f"Epoch {chosen + 1} is kept: validation {self.metric} {figure}. The {best}, "
            f"{self._figure(progress.highest)} in epoch {highest + 1}, is within one standard error "
            f"({error}, {int(self.counts.sum()):,} images), which may be "
            "chance; then the later epoch counts."
        )

    def _error(self, progress: Progress) -> float:
        return standard_error(self.metric, progress.highest, self.counts)

    def _figure(self, value: float) -> str:
        if self.metric in _PROPORTIONS:
            return numerals.percent(value)
        return numerals.loss(-value if self.falls else value)

    @staticmethod
    def _take(progress: Progress, value: float, loss: float, scores: Mapping[str, float]) -> bool:
        progress.best_value, progress.best_loss, progress.best_epoch = value, loss, progress.epoch
        progress.best_scores = dict(scores)
        return True
