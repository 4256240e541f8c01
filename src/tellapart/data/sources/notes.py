"""Messages about a source while it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tellapart.data.sources.listing import Guess, some


class Notes(list[str]):
    """Messages for the user: shown at once, and kept for the table."""

    def __init__(self, say: Callable[[str], None], warn: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._say, self._warn = say, warn or say
        self.guesses: list[str] = []

    def __call__(self, text: str) -> None:
        """Show and keep a note; a guess waits until its result is known."""
        if isinstance(text, Guess):
            self.guesses.append(text)
            return
        self.append(text)
        self._say(text)

    def warn(self, text: str) -> None:
        """Show and keep a warning."""
        self.append(text)
        self._warn(text)

    def tell_guesses(self, classes: Sequence[str] = ()) -> None:
        """Warn about each guess, with class names that show whether it is right."""
        telling = [name for name in classes if not name.isascii()]
        names = f" The classes are then: {some(telling or classes, 6)}." if classes else ""
        for text in self.guesses:
            self.warn(f"{text}{names} If that is wrong, --data.encoding names the encoding.")
        self.guesses = []
