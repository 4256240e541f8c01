"""What the pages share that tellapart writes: how they are rendered, how names break and how wide tables show it.

Every page is one file without scripts of others, so what is shared here is put into each of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tellapart import numerals

if TYPE_CHECKING:
    import jinja2
    import markupsafe

SCROLL_CSS = """\
.scroll { display: flex; overflow-x: auto; max-width: 100%; --edge: rgba(0, 0, 0, 0.3);
  background: linear-gradient(to right, var(--under) 30%, transparent) local left / 36px 100%,
    linear-gradient(to left, var(--under) 30%, transparent) local right / 36px 100%,
    linear-gradient(to right, var(--edge), transparent) scroll left / 14px 100%,
    linear-gradient(to left, var(--edge), transparent) scroll right / 14px 100%;
  background-repeat: no-repeat; }
.scroll > * { flex: 1 1 auto; }
.scroll > svg { flex: none; }
.scroll:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
@media (prefers-color-scheme: dark) { .scroll { --edge: rgba(255, 255, 255, 0.3); } }
@supports (animation-timeline: scroll(self inline)) {
  .scroll { background: none; }
  .scroll::before, .scroll::after { content: ""; position: sticky; z-index: 2; flex: 0 0 22px; pointer-events: none;
    opacity: 0; animation: scroll-edge linear; animation-timeline: scroll(nearest inline); }
  .scroll::before { left: 0; margin-right: -22px; background: linear-gradient(to right, var(--edge), transparent);
    box-shadow: inset 2px 0 var(--edge); animation-direction: reverse; }
  .scroll::after { right: 0; margin-left: -22px; background: linear-gradient(to left, var(--edge), transparent);
    box-shadow: inset -2px 0 var(--edge); }
  @keyframes scroll-edge { from, 90% { opacity: 1; } to { opacity: 0; } }
}
@media print { .scroll { display: block; overflow: visible; background: none; }
  .scroll::before, .scroll::after { content: none; } }
"""
"""Of ``class=scroll``: its edge is shaded where more lies beyond it. Needs the ground's colour as ``--under``; browsers
that animate by scrolling draw the shade over the cells, others beneath them."""


def environment(package: str) -> jinja2.Environment:
    """Return a Jinja environment for the templates of a package, with the figures' filters and `breakable`."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(numerals.FILTERS, breakable=breakable)
    made.globals["scroll_css"] = SCROLL_CSS
    return made


def breakable(text: str) -> markupsafe.Markup:
    """Return a name or path as markup that may break after a slash or an underscore, rather than inside a word."""
    from markupsafe import Markup, escape

    parts = re.split(r"(?<=[/\\_])(?=[^/\\_\s])", text)
    return Markup("<wbr>").join(escape(part) for part in parts)
