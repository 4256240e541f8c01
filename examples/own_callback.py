"""A callback of your own, which stops training when an epoch gains too little.

What state_dict returns is saved with each checkpoint. Run it: python examples/own_callback.py
"""

import sys
from collections.abc import Mapping
from typing import Any

import tellapart


class EnoughLearned(tellapart.Callback):
    """Stops when validation accuracy rises by less than ``gain`` in an epoch."""

    def __init__(self, gain: float) -> None:
        self.gain, self.accuracies = gain, [0.0]

    def on_fit_start(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_validate(self, scores: Mapping[str, float]) -> None:
        self.accuracies.append(scores["accuracy"])
        if self.accuracies[-1] - self.accuracies[-2] < self.gain:
            self.trainer.stop(f"accuracy rose by less than {self.gain}")

    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": self.accuracies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracies = state["accuracies"]


if __name__ == "__main__":
    run, enough = {"dir": sys.argv[1] if len(sys.argv) > 1 else ""}, EnoughLearned(0.9)
    result = tellapart.train(callbacks=[enough], training={"epochs": 5}, run=run, quiet=True)
    print(
        f"accuracy {result.metrics['accuracy']:.3f} after {len(enough.accuracies) - 1} epochs, in {result.run}"
    )
