"""The named sections of a step, for measuring them: without a listener only a function call.

Knows nothing of clocks, of what a section computes, or of the listener.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Listener = Callable[[str], AbstractContextManager[Any]]
_NOTHING = contextlib.nullcontext()


class Sections:
    """Entered by the loop, the step and the task: ``with sections("forward"): ...``.

    ``listener`` is given each section's name and returns the context in which it runs; None: there is no listener.
    """

    listener: Listener | None = None

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        """Return the context of the section ``name``."""
        return _NOTHING if self.listener is None else self.listener(name)
