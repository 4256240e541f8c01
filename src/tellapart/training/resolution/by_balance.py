"""Rules about classes of unequal sizes: a balanced loss and metric, where that gains more than it costs.

Measured on CIFAR-10 with classes from 500 images downwards (a linear head on EfficientNet-Lite0's features, mean of
three draws, 1,000 test images). What weights by the effective number change in points of accuracy, with a test split as
imbalanced as training, and of balanced accuracy:

=====  ========  =================
ratio  accuracy  balanced accuracy
=====  ========  =================
3      -0.5      +2.7
5      -0.5      +6.2
10     -1.6      +10.2
20     -2.7      +14.4
100    -3.3      +17.0
=====  ========  =================

Weights by inverse frequency gain as much and cost up to 5.3 points. Logit adjustment, in the loss or afterwards (Menon
et al. 2021), gains up to 1.5 points more and costs up to 5 points more.
"""

from __future__ import annotations

from tellapart import numerals, references
from tellapart.spec import Spec
from tellapart.training.resolution.choice import Choice
from tellapart.training.resolution.facts import DataFacts

RATIO = 5  # of the largest class to the smallest, from which on classes are balanced: see above
# Times that an image of the rarest class counts as much as one of the largest, at most; measured up to 80.
HEAVIEST = 200


def of_balance(spec: Spec, data: DataFacts, own_beta: bool = False) -> list[Choice]:
    """Class weights, and with them the best metric; ``own_beta``: beta was given.

    auto: by the effective number of samples if the largest class has at least 5 times the images of the smallest.
    Nothing is weighted where sampling balances already, where an image can have several labels, for grades, which have
    a metric of their own, with a loss of one's own, or beside a teacher.
    """
    training, ratio = spec.training, imbalance(data)
    high = ratio >= RATIO and not data.several and not data.grades
    found: list[Choice] = []
    weights: str = training.class_weights
    if weights == "auto":
        weights, why = "none", "classes of similar size, or balanced in another way"
        if high and _weighable(spec):
            weights, why = "effective", f"balanced: {_words(ratio)}; none is for plain accuracy"
        found.append(Choice("training.class_weights", weights, why, weights != "none"))
        if weights == "effective" and not own_beta:
            found.append(Choice("training.effective_beta", _beta(data), "by the sizes of the classes"))
    balanced = weights != "none" or training.sampling != "shuffle"
    if training.best_metric == "auto" and high and balanced:
        reason = "the mean over the classes, as the loss is balanced"
        found.append(Choice("training.best_metric", "balanced-accuracy", reason, matters=True))
    return found


def imbalance(data: DataFacts) -> float:
    """Return how many times the images of the smallest class the largest has; classes without images do not count."""
    counts = [count for count in data.counts if count]
    return max(counts) / min(counts) if counts else 1.0


def _words(ratio: float) -> str:
    times = numerals.setting(round(ratio)) if ratio >= 10 else numerals.setting(round(ratio, 1))
    return f"the largest class has {times} times the images of the smallest"


def _weighable(spec: Spec) -> bool:
    training = spec.training
    return (
        training.sampling == "shuffle" and not references.is_own(training.loss) and not spec.distill.teacher
    )


def _beta(data: DataFacts) -> float:
    """Return the effective number's beta: as measured, 0.999 where the largest class has 500 images.

    It grows with the largest class, so that twice the images of all classes leave the weights as they are; and an image
    of the rarest class counts at most `HEAVIEST` times as much as one of the largest.
    """
    counts = [count for count in data.counts if count]
    return round(min(1 - 0.5 / max(counts), 1 - 1 / (HEAVIEST * min(counts)), 0.999999), 6)
