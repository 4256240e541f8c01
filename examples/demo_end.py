"""The last lines of `make demo`: what was achieved, where it is, what to type next.

python examples/demo_end.py RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROGRAM = ".venv/bin/tellapart"


def last_lines(run: Path) -> str:
    """Return the lines for a finished run; they read only its evaluation on the test split."""
    with open(run / "evaluation" / "test" / "metrics.json", encoding="utf-8") as stream:
        figures = json.load(stream)
    low, high = figures["accuracy_interval"]
    return "\n".join(
        [
            f"The demo is done: {100 * figures['accuracy']:.2f} % of {figures['n']:,} test images are labelled right",
            f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %). Nothing was chosen by looking at the test images.",
            "",
            f"Model   {run / 'model.safetensors'}",
            f"Report  {run / 'report.html'} (open it in a browser)",
            "",
            "Next, your own images, in one folder for each class:",
            f"  {PROGRAM} check photos/ --html check.html",
            f"  {PROGRAM} train photos/",
        ]
    )


def main() -> int:
    """Print the lines for the run folder given; return the exit code."""
    if len(sys.argv) != 2:
        print("usage: python examples/demo_end.py RUN", file=sys.stderr)
        return 2
    try:
        print(last_lines(Path(sys.argv[1])))
    except (OSError, ValueError, KeyError) as error:
        print(
            f"error: {sys.argv[1]} has no readable evaluation on a test split: {error}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
