"""`python -m harness.lifecycle HOME JOB LOCK`: a supervisor in an interpreter of its own, LOCK a descriptor."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.home import Home
from harness.lifecycle import supervise

if __name__ == "__main__":
    supervise(Home(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
