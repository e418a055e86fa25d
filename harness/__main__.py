"""`python -m harness`, and the `harness` command."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; Ctrl-C while it is still being imported leaves no traceback either."""
    try:
        from harness.cli import main as run

        code = run()
        # It is decided: a Ctrl-C while Python ends must not change the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
