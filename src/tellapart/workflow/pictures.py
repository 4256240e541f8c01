"""What training sees: images before and after augmentation.

Knows nothing of where they are shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tellapart.contract.decoding import whole
from tellapart.data.loader import source_sizes
from tellapart.preprocess import denormalise, resize
from tellapart.tracking import picture_grid
from tellapart.training import setup


def training_grid(prepared: setup.RunData, count: int = 16) -> Any:
    """Return training images as the network sees them, after augmentation."""
    _, after, labels = augmented_pictures(prepared, count)
    return picture_grid(after, [prepared.label_names(label) for label in labels])


def augmented_pictures(prepared: setup.RunData, count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return images before (as evaluation sees them) and after augmentation, uint8 [n, H, W, C], and labels."""
    images = prepared.train
    rows = np.random.default_rng(prepared.spec.seed).permutation(len(images))[:count].astype(np.int64)
    batch = images.batch(np.sort(rows))
    params = prepared.augment.draw(batch.count, source_sizes(batch), torch.Generator().manual_seed(seed))
    after = denormalise(prepared.augment.apply(batch.images, batch.sizes, params), prepared.contract)
    before = [resize(images.store.image(int(images.rows[row])), prepared.contract) for row in np.sort(rows)]
    return whole(np.stack(before)), after.numpy(), batch.labels.numpy()
