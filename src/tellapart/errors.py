"""The errors that a user may see, each saying what happened, where, and what to do.

Knows nothing of the rest of the package. ``exit_code`` is what the command line returns: 2 if the user's input must
change, 1 if the work itself failed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class TellapartError(Exception):
    """Base of every error that tellapart raises on purpose."""

    exit_code = 1


class UserError(TellapartError):
    """The input must change: a wrong flag, path, file or name."""

    exit_code = 2


class SpecError(UserError, ValueError):
    """A spec has an unknown key or an impossible value."""


class DataError(UserError):
    """The data cannot be used as given."""


class CacheError(UserError):
    """Decoded images or downloads cannot be stored in the cache folder."""


class ModelError(UserError):
    """A model or its weights cannot be used as given."""


class ArtifactError(UserError):
    """A file is not an artifact of tellapart, or is damaged."""


class RunError(UserError):
    """A run folder cannot be used as asked."""


class ServeError(UserError):
    """The service cannot run as asked."""


class OfflineError(UserError):
    """Something would have to be downloaded and cannot be."""


class MissingPackageError(UserError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f'type: pip install "tellapart[{extra}]"'
        )


class TrainingError(TellapartError):
    """Training cannot continue (a loss that is not finite, not enough memory)."""


class ExportError(TellapartError):
    """An exported file does not give the artifact's answers, or could not be made."""


# control characters, and those that turn the direction of the text
_HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def shown(text: str, one_line: bool = False) -> str:
    r"""Return ``text`` with characters that steer a terminal spelt out, such as ``\x1b``: names come from anybody.

    Line ends and tabs stay, unless the text is to stay on one line.
    """
    if one_line:
        text = text.replace("\n", "\\n").replace("\t", "\\t")
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class Stopped(KeyboardInterrupt):
    """A signal ends the program at once; ``number`` is the signal's. The command line returns 128 + number."""

    def __init__(self, number: int, text: str = "interrupted") -> None:
        super().__init__(text)
        self.number = number


class WriteError(TellapartError, OSError):
    """A file cannot be written: the disk is full, a quota or a limit is reached, a folder may not be written to."""

    def __str__(self) -> str:
        return str(self.args[0])

    def with_hint(self, text: str) -> WriteError:
        """Return the same error with a sentence added."""
        told = WriteError(f"{self} {text}")
        told.errno, told.strerror, told.exit_code = self.errno, self.strerror, self.exit_code
        return told


def did_you_mean(name: str, valid: Iterable[str], limit: int = 12, meant: Iterable[str] = ()) -> str:
    """Return a sentence with the nearest valid names and, if there are few, all of them.

    Case, hyphens, underscores and spaces do not matter. ``meant``: valid names known to be what ``name`` says.

    >>> did_you_mean("resnet", ["resnet18", "vgg11"])
    "Did you mean 'resnet18'? Valid: resnet18, vgg11."
    """
    names = list(dict.fromkeys(valid))
    close = list(meant) or [known for known in names if _folded(known) == _folded(name)]
    if not close:
        folded = {known.casefold(): known for known in reversed(names)}
        found = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
        close = [folded[match] for match in found]
    parts = []
    if close:
        parts.append("Did you mean " + " or ".join(repr(match) for match in close) + "?")
    if names and len(names) <= limit:
        parts.append("Valid: " + ", ".join(names) + ".")
    elif names and not close:
        parts.append("Valid, among others: " + ", ".join(names[:limit]) + ", …")
    return " ".join(parts)


def _folded(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in "-_ ")
