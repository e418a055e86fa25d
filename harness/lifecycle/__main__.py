"""`python -m harness.lifecycle HOME JOB LOCK`: a supervisor in an interpreter of its own, LOCK a descriptor.

Without JOB and LOCK: remove what keepers of warm hosts left that were killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.home import VARIABLE, Home
from harness.lifecycle import clean_dead, supervise

if __name__ == "__main__":
    home = Home(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        supervise(home, sys.argv[2], int(sys.argv[3]))
    else:
        os.environ[VARIABLE] = str(home.root)
        clean_dead(home)
