"""YAML that may come from anybody: plain values only, and never more of them than the text is long.

An alias stands for all that its anchor holds, so a few lines can mean billions of values; and values can be nested
deeper than any program follows. Both are refused while reading.
"""

from __future__ import annotations

from typing import Any

MOST_TEXT = 8 << 20
MOST_DEPTH = 50
MOST_VALUES = 1_000_000


class YamlError(ValueError):
    """A text is not YAML, or not YAML that is read here; says where."""


def load(text: str | bytes, words: bool = False) -> Any:
    """Return the value of a YAML text (bytes: UTF-8, or by its mark UTF-16). Raises YamlError.

    ``words``: scalars stay the text that they are written as, so that ``no`` is a word and not False.
    """
    import yaml

    if len(text) > MOST_TEXT:
        raise YamlError(f"it has more than {MOST_TEXT >> 20} million characters")
    try:
        return _loader(words)(text).get_single_data()
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from None
    except RecursionError:
        raise YamlError(f"it is nested deeper than {MOST_DEPTH}") from None
    except (
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        # such as an impossible date or number
        raise YamlError(str(error)) from None


def _loader(words: bool) -> Any:
    """Return the class that reads; made when needed, because yaml takes a moment to import."""
    import yaml

    base: Any = yaml.BaseLoader if words else yaml.SafeLoader

    class Loader(base):  # type: ignore[misc]
        """Counts what aliases stand for, and levels."""

        def __init__(self, stream: str | bytes) -> None:
            super().__init__(stream)
            self._depth = self._values = 0
            self._sizes: dict[int, int] = {}  # of a finished node: how many values it stands for

        def compose_node(self, parent: Any, index: Any) -> Any:
            alias = self.check_event(yaml.AliasEvent)
            before = self._values
            self._depth += 1
            if self._depth > MOST_DEPTH:
                raise YamlError(f"it is nested deeper than {MOST_DEPTH}")
            node = super().compose_node(parent, index)
            self._depth -= 1
            if not alias:
                self._values += 1
                self._sizes[id(node)] = self._values - before
            elif id(node) in self._sizes:
                self._values += self._sizes[id(node)]
            else:
                raise YamlError("an alias stands for what it is in itself")
            if self._values > MOST_VALUES:
                raise YamlError(f"its aliases stand for more than {MOST_VALUES:,} values")
            return node

    return Loader
