"""What a running job emits: log streams, metrics from metric definitions, samples of its hosts."""

from harness.telemetry._metrics import MetricScanner
from harness.telemetry._reader import EVENT_BYTES, LogEvent, LogReader, stream_name
from harness.telemetry._sampler import Sampler
from harness.telemetry._writer import LogWriter

__all__ = [
    "EVENT_BYTES",
    "LogEvent",
    "LogReader",
    "LogWriter",
    "MetricScanner",
    "Sampler",
    "stream_name",
]
