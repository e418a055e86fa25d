"""What an interpreter says about itself. Run as a script by any Python 3.8 or newer, or imported by ours."""

from __future__ import annotations

import json
import os
import sys
import sysconfig


def facts() -> dict:  # type: ignore[type-arg]  # Python 3.8 has no dict[...] at run time
    """Where this interpreter is, what it needs to see, and where pip would install to."""
    paths = sysconfig.get_paths()
    # Not what PYTHONPATH or the directory of a script adds: a host has none of it.
    added = {os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    return {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "purelib": paths["purelib"],
        "platlib": paths["platlib"],
        "scripts": paths["scripts"],
        "path": [entry for entry in sys.path[1:] if os.path.isabs(entry) and entry not in added],
        "managed": sys.prefix == sys.base_prefix
        and os.path.exists(os.path.join(paths["stdlib"], "EXTERNALLY-MANAGED")),
        "version": "{}.{}".format(*sys.version_info[:2]),
    }


if __name__ == "__main__":
    json.dump(facts(), sys.stdout)
