"""Comes before the sitecustomize of an image, runs that one first, and then the harness's hook.

On PYTHONPATH of the hosts of a debugged job: every Python there imports it, so it has to be one that Python 2
can still read, and it does as little as possible.
"""

import os
import sys


def _others(here):
    # type: (str) -> None
    """The module that would have been imported if we weren't there takes our name."""
    places = [place for place in sys.path if os.path.abspath(place) != here]
    if sys.version_info[0] < 3:
        import imp

        try:
            found = imp.find_module("sitecustomize", places)
        except ImportError:
            return
        try:
            imp.load_module("sitecustomize", *found)
        finally:
            if found[0] is not None:
                found[0].close()
        return
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", places)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _hook(path):
    # type: (str) -> None
    if sys.version_info < (3, 8):
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        program = os.environ.get("HARNESS_DEBUG_PROGRAM", "")
        if program and program.encode() in words:
            sys.stderr.write(
                "harness debug: the debugger needs Python 3.8, and this host has %d.%d: use an image with a "
                "newer Python, or `harness run`\n" % sys.version_info[:2]
            )
            sys.stderr.flush()
            os._exit(1)
        return
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("_harness_debug", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.start()


try:
    _others(os.path.dirname(os.path.abspath(__file__)))
finally:
    if os.environ.get("HARNESS_HOOK"):
        _hook(os.environ["HARNESS_HOOK"])
