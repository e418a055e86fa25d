"""Started as a directory: `python /run/harness/code`."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = "_harness_warm"

if __name__ == "__main__":
    if not sys.flags.isolated:
        # Without what the image's environment and its site-packages would do to a Python.
        os.execv(sys.executable, [sys.executable, "-I", "-S", HERE, *sys.argv[1:]])
    # Not found by its directory's name, which may be that of a module of Python's.
    package = type(sys)(PACKAGE)
    package.__path__ = [HERE]
    sys.modules[PACKAGE] = package
    sys.path.remove(HERE)
    __import__(PACKAGE + ".keeper", fromlist=["main"]).main(*sys.argv[1:])
