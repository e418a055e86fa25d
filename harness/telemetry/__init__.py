"""What a running job emits: log streams, metrics from metric definitions, samples of its hosts.

And what is to be known of a job that died: tracebacks in its log, stacks of its processes, the kernel's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.telemetry._kernel import KernelLine, kernel_lines
    from harness.telemetry._metrics import MetricScanner
    from harness.telemetry._reader import EVENT_BYTES, LogEvent, LogReader, stream_name
    from harness.telemetry._sampler import Sampler
    from harness.telemetry._secrets import HIDDEN, hide_arguments, hider, is_secret
    from harness.telemetry._stacks import (
        Stack,
        Stacks,
        Standstill,
        awaited_worker,
        is_own_code,
        read_stacks,
        short_path,
        standstill,
        take_stacks,
    )
    from harness.telemetry._traceback import Frame, RootCause, Scan, Traceback, scan
    from harness.telemetry._witness import EVIDENCE, Witness, read_evidence, read_packages
    from harness.telemetry._writer import LogWriter
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_kernel": ("KernelLine", "kernel_lines"),
            "_metrics": ("MetricScanner",),
            "_reader": ("EVENT_BYTES", "LogEvent", "LogReader", "stream_name"),
            "_sampler": ("Sampler",),
            "_secrets": ("HIDDEN", "hide_arguments", "hider", "is_secret"),
            "_stacks": (
                "Stack",
                "Stacks",
                "Standstill",
                "awaited_worker",
                "is_own_code",
                "read_stacks",
                "short_path",
                "standstill",
                "take_stacks",
            ),
            "_traceback": ("Frame", "RootCause", "Scan", "Traceback", "scan"),
            "_witness": ("EVIDENCE", "Witness", "read_evidence", "read_packages"),
            "_writer": ("LogWriter",),
        },
    )

__all__ = [
    "EVENT_BYTES",
    "EVIDENCE",
    "HIDDEN",
    "Frame",
    "KernelLine",
    "LogEvent",
    "LogReader",
    "LogWriter",
    "MetricScanner",
    "RootCause",
    "Sampler",
    "Scan",
    "Stack",
    "Stacks",
    "Standstill",
    "Traceback",
    "Witness",
    "awaited_worker",
    "hide_arguments",
    "hider",
    "is_own_code",
    "is_secret",
    "kernel_lines",
    "read_evidence",
    "read_packages",
    "read_stacks",
    "scan",
    "short_path",
    "standstill",
    "stream_name",
    "take_stacks",
]
