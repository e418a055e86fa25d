"""Processes that outlive their parent."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest

from harness.lifecycle._detach import fork


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_whatever_its_parent_does_about_it(number: signal.Signals) -> None:
    reader, writer = os.pipe()

    def work() -> None:
        os.close(2)  # the traceback of a KeyboardInterrupt
        os.write(writer, str(os.getpid()).encode())
        time.sleep(60)

    before = signal.signal(number, lambda *_: None)
    try:
        fork(work)
        pid = int(os.read(reader, 20))
        process = psutil.Process(pid)
        os.kill(pid, number)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(10)
    finally:
        signal.signal(number, before)
        os.close(reader)
        os.close(writer)
