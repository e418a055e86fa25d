"""`make bench`: the numbers of the design, each beside its counterpart in the same run.

Ratios are what counts: both sides of a row run in turn, on the same machine, in the same minutes. The
median of the pairs is shown. Never run as a test: a noisy machine must not turn a suite red.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import channel_rows, loop_rows, rows


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    reach: str
    run: Callable[[Path, int], rows.Measured]


TABLE = (
    Row(
        what="docker: `run` to the script's first line, against `docker run`",
        reach="≤ 1.3×",
        run=rows.docker_first_line,
    ),
    Row(
        what="docker: whole trivial job, against SDK v2 local mode",
        reach="≥ 4× faster",
        run=rows.docker_whole_job,
    ),
    Row(
        what="docker: whole trivial job, over `docker run` alone",
        reach="–",
        run=rows.docker_overhead,
    ),
    Row(
        what="sandbox: start to first line, over bare `python script.py`",
        reach="≤ +200 ms",
        run=rows.sandbox_first_line,
    ),
    Row(what="model.tar.gz of 400 MB, against tarfile w:gz", reach="≥ 10× faster", run=rows.archive),
    Row(
        what="second run with an unchanged channel of 50,000 files: staging", reach="≤ 1 s", run=rows.staging
    ),
    Row(
        what="Pipe: an epoch of 40 files of 10 MB, against `cat` of them through a FIFO",
        reach="≥ 0.7× faster",
        run=channel_rows.pipe_of_large_files,
    ),
    Row(
        what="Pipe: an epoch of 20,000 files of 10 kB as RecordIO, against plain `cat`",
        reach="≥ 0.7× faster",
        run=channel_rows.pipe_of_small_files,
    ),
    Row(what="FastFile: 100,000 objects ready", reach="≤ 1 s", run=channel_rows.fast_file),
    Row(what="sharding of 100,000 objects over 7 hosts, 3 epochs", reach="–", run=channel_rows.sharding),
    Row(what="log capture with 10 metric definitions", reach="≥ 200,000 lines/s", run=rows.log_capture),
    Row(
        what="sandbox, warm: `run` to first line after `import torch`, against cold",
        reach="≤ 300 ms, host 100",
        run=loop_rows.sandbox_against_cold,
    ),
    Row(
        what="docker, warm: `run` to first line after `import torch`, against cold",
        reach="≤ 400 ms",
        run=loop_rows.docker_against_cold,
    ),
    Row(
        what="sandbox, warm: the same, against SDK v2 local mode",
        reach="≥ 20× faster",
        run=loop_rows.sandbox_against_sdk,
    ),
    Row(
        what="docker, warm: the same, against SDK v2 local mode",
        reach="≥ 20× faster",
        run=loop_rows.docker_against_sdk,
    ),
    Row(
        what="sandbox, watch: saved file to first line after `import torch`",
        reach="≤ 500 ms",
        run=loop_rows.watch,
    ),
    Row(
        what="sandbox, warm: the 101st to 110th run, against a new host",
        reach="1×, no growth",
        run=loop_rows.hundred,
    ),
    Row(what="`harness jobs` with 100,000 jobs in the store", reach="≤ 100 ms", run=rows.listing),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--runs", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--only", help="rows whose text has this word")
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {load}, {platform.release()}, Python {sys.version.split()[0]}"
    )
    print(f"{'what':72} {'reach':20} {'ours':>12} {'theirs':>12} {'result':>12}")
    for row in TABLE:
        if options.only and options.only not in row.what:
            continue
        with tempfile.TemporaryDirectory(prefix="harness-bench-") as directory:
            started = time.monotonic()
            try:
                measured = row.run(Path(directory), options.runs)
            except rows.NotHereError as reason:
                print(f"{row.what:72} {row.reach:20} not measured: {reason}")
                continue
        ours = rows.show(statistics.median(measured.ours), measured.unit)
        theirs = rows.show(statistics.median(measured.theirs), measured.unit) if measured.theirs else "–"
        print(
            f"{row.what:72} {row.reach:20} {ours:>12} {theirs:>12} {measured.result():>12}"
            f"   {measured.note} [{time.monotonic() - started:.0f} s]",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
