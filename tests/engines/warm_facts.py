"""A job's script that prints all that a process can tell of itself, before and after its imports.

Run cold and warm by test_warm_inner.py; both must print the same, but for what the test lists.
"""

# A script is written like that: the imports come after a look at what is there.

import sys

BEFORE = sorted(sys.modules)
FRAMES = []
frame = sys._getframe()
while frame is not None:
    FRAMES.append((frame.f_code.co_filename, frame.f_code.co_name))
    frame = frame.f_back

import os

DESCRIPTORS = {}
for number in os.listdir("/proc/self/fd"):
    try:
        DESCRIPTORS[number] = os.readlink("/proc/self/fd/" + number).partition(":")[0]
    except OSError:
        pass  # the directory itself
ENVIRONMENT = [list(map(repr, item)) for item in os.environb.items()]

import atexit
import gc
import inspect
import json
import locale
import logging
import multiprocessing.process
import random
import resource
import signal
import tempfile
import threading
import time
import traceback
import uuid
import warnings


def read(name):
    with open("/proc/self/" + name, "rb") as file:
        return file.read().decode("utf-8", "replace")


def stream(of):
    return {
        "text": repr(of),
        "errors": of.errors,
        "line_buffering": of.line_buffering,
        "write_through": of.write_through,
        "newlines": repr(of.newlines),
        "buffer": type(of.buffer).__name__,
        "raw": repr(getattr(of.buffer, "raw", of.buffer)),
        "seekable": of.seekable(),
        "terminal": of.isatty(),
        "number": of.fileno(),
    }


def status():
    lines = dict(line.split(":", 1) for line in read("status").splitlines())
    names = ("Name", "Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "SigPnd", "Threads")
    more = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Cpus_allowed")
    found = {name: lines[name].strip() for name in (*names, *more) if name in lines}
    # 32 and 33 are libc's own, from the first thread that ever was.
    for name in ("SigIgn", "SigCgt"):
        found[name] = hex(int(found[name], 16) & ~(3 << 31))
    return found


main = sys.modules["__main__"]
facts = {
    "environment": ENVIRONMENT,
    "environment as text": list(map(repr, os.environ.items())),
    "argv": sys.argv,
    "orig_argv": getattr(sys, "orig_argv", None),
    "path": sys.path,
    "path hooks": [getattr(hook, "__name__", "") for hook in sys.path_hooks],
    "meta path": [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path],
    "flags": repr(sys.flags),
    "warnoptions": sys.warnoptions,
    "xoptions": repr(sys._xoptions),
    "executable": [sys.executable, getattr(sys, "_base_executable", None)],
    "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix],
    "main": {name: repr(value) for name, value in vars(main).items() if name.startswith("__")},
    "main is this": main.__dict__ is globals(),
    "builtins": sorted(vars(__builtins__)),
    "frames": FRAMES,
    "stack": [line for line in traceback.format_stack()],
    "frames of inspect": len(inspect.stack()),
    "source": inspect.getsource(stream),
    "cwd": os.getcwd(),
    "pgid": os.getpgrp() == os.getpgid(os.getppid()) or os.getpgrp(),
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "nice": os.nice(0),
    "affinity": sorted(os.sched_getaffinity(0)),
    "limits": {
        name: resource.getrlimit(getattr(resource, name))
        for name in dir(resource)
        if name.startswith("RLIMIT_")
    },
    "descriptors": DESCRIPTORS,
    "status": status(),
    "signals": {number: repr(signal.getsignal(number)) for number in range(1, signal.NSIG)},
    "wakeup": signal.set_wakeup_fd(-1),
    "mask": repr(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "timer": signal.getitimer(signal.ITIMER_REAL),
    "cmdline": read("cmdline"),
    "comm": read("comm"),
    "environ in proc": sorted(read("environ").split("\0")),
    "exe": os.readlink("/proc/self/exe"),
    "oom": read("oom_score_adj"),
    "locale": [locale.setlocale(number) for number in range(6)],
    "encodings": [
        sys.getfilesystemencoding(),
        sys.getfilesystemencodeerrors(),
        locale.getpreferredencoding(),
    ],
    "zone": [time.tzname, time.timezone],
    "threads": [thread.name for thread in threading.enumerate()],
    "main thread": threading.current_thread() is threading.main_thread(),
    "thread of the process": threading.main_thread().native_id == os.getpid(),
    "thread number": threading.get_ident() == threading.main_thread().ident,
    "streams": [stream(getattr(sys, name)) for name in ("stdin", "stdout", "stderr")],
    "streams are the first": [
        getattr(sys, name) is getattr(sys, "__%s__" % name) for name in ("stdin", "stdout", "stderr")
    ],
    "hooks": [repr(sys.excepthook), repr(sys.displayhook), sys.gettrace(), sys.getprofile()],
    "gc": [gc.get_threshold(), gc.isenabled(), gc.get_debug(), gc.garbage],
    "recursion": [sys.getrecursionlimit(), sys.getswitchinterval(), sys.getdlopenflags()],
    "logging": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable],
    "log age": abs(time.time() - (logging._startTime / (1e9 if logging._startTime > 1e12 else 1))) < 60,
    "process": [
        multiprocessing.process.current_process().name,
        multiprocessing.process.parent_process(),
        multiprocessing.process.ORIGINAL_DIR,
    ],
    "temporary": tempfile.gettempdir(),
    "children": os.times()[2:4],
    "used": time.process_time() < 60,
}

import numpy
import torch

facts["modules after the imports"] = sorted(sys.modules)
facts["modules of ours"] = [name for name in sys.modules if "harness" in name]
facts["environment after the imports"] = sorted(map(repr, os.environ.items()))
facts["torch"] = [
    torch.get_num_threads(),
    torch.get_num_interop_threads(),
    str(torch.get_default_dtype()),
    torch.is_grad_enabled(),
    torch.cuda.is_initialized(),
    torch.cuda.is_available(),
]
facts["warnings after the imports"] = list(map(repr, warnings.filters))
facts["a product"] = (torch.ones(300, 300) @ torch.ones(300, 300)).sum().item()
facts["another"] = float((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())
facts["threads after the imports"] = threading.active_count()
facts["handlers at exit"] = atexit._ncallbacks()

print(
    json.dumps(
        {
            "facts": facts,
            "before": BEFORE,
            "ppid": os.getppid(),
            "chance": [
                random.random(),
                numpy.random.rand(),
                torch.initial_seed(),
                torch.rand(1).item(),
                uuid.uuid4().hex,
                os.path.basename(tempfile.mktemp()),
                multiprocessing.process.current_process().authkey.hex(),
                os.urandom(8).hex(),
            ],
        }
    )
)
