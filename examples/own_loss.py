"""A loss of your own: Poly-1 cross-entropy (Leng et al. 2022), which no option of tellapart has.

A loss takes logits and targets and returns the loss of each image. Run it: python examples/own_loss.py
"""

import sys

import torch
import torch.nn.functional as F

import tellapart


def poly(logits: torch.Tensor, targets: torch.Tensor, epsilon: float = 1.0) -> torch.Tensor:
    """Cross-entropy, and epsilon times how far the label's probability is from 1."""
    right = logits.softmax(1).gather(1, targets[:, None]).squeeze(1)
    return F.cross_entropy(logits, targets, reduction="none") + epsilon * (1 - right)


if __name__ == "__main__":
    result = tellapart.train(
        loss=poly,  # on the command line: --training.loss my_module:poly --training.loss-arguments epsilon=2
        training={"epochs": 2, "lr": 0.005},
        run={"dir": sys.argv[1] if len(sys.argv) > 1 else ""},
        quiet=True,
    )
    print(f"accuracy {result.metrics['accuracy']:.3f} with the loss {poly.__name__}, in {result.run}")
