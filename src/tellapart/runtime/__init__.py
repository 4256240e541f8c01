"""Model files of every format, opened to one seam: from an image's bytes to logits.

Importing it loads no torch; opening a file loads what its format needs. Knows nothing of training, and nothing of
how the files were made.
"""

from __future__ import annotations

import os

from tellapart.runtime.base import Backend, probabilities

__all__ = ["Backend", "open_backend", "probabilities"]


def open_backend(
    path: str | os.PathLike[str], device: str = "cpu", precision: str = "fp32", threads: int = 0
) -> Backend:
    """Open a run folder, an artifact or an exported file, by its content and name.

    Args:
        path: run folder, artifact or exported file.
        device: cpu, cuda, cuda:N or mps; the formats that have their own runtime compute on the CPU.
        precision: fp32, bf16 or fp16, for an artifact.
        threads: threads that one call computes with; 0 leaves it to the runtime.

    Raises ArtifactError, ModelError, MissingPackageError.
    """
    from tellapart.runtime.eager import open_artifact

    return open_artifact(path, device, precision)
