"""``python -m tellapart`` and ``torchrun -m tellapart``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# -m puts the working folder first in the path, which may contain a stranger's files, such as a torch.py.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()] != [str(Path(__file__).parents[1])]:
    del sys.path[0]

from tellapart.cli import main

if __name__ == "__main__":
    sys.exit(main())
