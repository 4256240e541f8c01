"""The named sections of a step, for whoever wants to measure them: nothing but a call where nobody listens.

Knows nothing of clocks, of what a section computes, or of who listens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Listener = Callable[[str], AbstractContextManager[Any]]
_NOTHING = contextlib.nullcontext()


class Sections:
    """What the loop, the step and the task enter: ``with sections("forward"): ...``.

    ``listener`` is given each section's name and returns the context in which it runs; None: nobody listens.
    """

    listener: Listener | None = None

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        """Return the context of the section ``name``."""
        return _NOTHING if self.listener is None else self.listener(name)
