"""One job of a verification: a variant of the subject's spec, through the real life cycle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass
from harness.conformance._words import BUCKET
from harness.errors import HarnessError
from harness.home import Home
from harness.model import JsonObject, Plan, Spec
from harness.objects import ObjectStore
from harness.outputs import read_failure
from harness.store import JobRecord
from harness.targets import local

__all__ = ["Run", "Runner", "Watching", "change"]

_LIMIT: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job that has ended, and everything of it that a check may want to see."""

    record: JobRecord
    log: str
    """What its first host printed, the last megabyte."""
    model: Mapping[str, bytes] | None
    """Files of model.tar.gz; None when there is none."""
    output: Mapping[str, bytes] | None
    checkpoints: Mapping[str, int]
    """Key below the checkpoints' prefix → bytes, at the end."""
    changes: Mapping[str, int]
    """What the container changed in its image: path → 0 modified, 1 added, 2 deleted."""
    failure_file: str
    """What its first host left in /opt/ml/output/failure."""
    seconds: float
    """How long its first host ran."""
    stopped_after: float | None = None
    """When the verification asked it to stop, in seconds after its first host had started."""
    read: frozenset[str] = frozenset()
    """Files in its checkpoint directory that were read after they were restored."""

    @property
    def status(self) -> str:
        return self.record.status

    @property
    def exit_code(self) -> int | None:
        """Of the first host."""
        return self.record.hosts[0].exit_code if self.record.hosts else None

    @property
    def reason(self) -> str:
        """Why it failed, in one line for a sentence."""
        text = " ".join((self.record.failure_reason or "").split())
        return text if len(text) <= 300 else f"{text[:299]}…"

    @property
    def killed(self) -> bool:
        """Whether it took SIGKILL to end it."""
        return bool((self.record.result.get("stop") or {}).get("killed"))

    def facts(self, host: str = "algo-1") -> JsonObject | None:
        """What the probe wrote down on that host."""
        found = (self.output or {}).get(f"{host}.json")
        return None if found is None else json.loads(found)


class Watching:
    """A running job, for what a check does to it."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.stopped_after: float | None = None
        self._entry = home.job(name) / "hosts/algo-1/entry.json"

    @property
    def running(self) -> float | None:
        """Seconds since its first host started; None before."""
        try:
            return max(time.time() - self._entry.stat().st_mtime, 0.0)
        except FileNotFoundError:
            return None

    def log(self) -> str:
        path = self.home.logs(self.name, 1) / "algo-1.log"
        return _tail(path)

    def stop(self, *, now: bool = False) -> None:
        if self.stopped_after is None:
            self.stopped_after = self.running or 0.0
            with contextlib.suppress(HarnessError):  # it has ended by itself
                local.stop(self.name, now=now, home=self.home)


class Runner:
    """Runs variants of one spec, a few side by side, each as a job with a name of its own."""

    def __init__(self, home: Home, spec: Spec, *, side_by_side: int = 3) -> None:
        self.home = home
        self.spec = spec
        self.plan: Plan = local.make_plan(spec, home)
        self._slots = threading.Semaphore(side_by_side)
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Kill what runs, and start nothing more: whoever waits in `run` comes back soon."""
        self._cancelled.set()

    def run(
        self,
        scenario: str,
        *,
        spec: Spec | None = None,
        request: JsonObject | None = None,
        act: Callable[[Watching], None] | None = None,
        most: float = 60.0,
    ) -> Run:
        """Run the spec (or `spec` in its place) with `request` merged over its own, and wait for the end.

        `act` is called again and again while the job lives. After `most` seconds the job is stopped.
        """
        with self._slots:
            return self._run(scenario, spec or self.spec, request or {}, act, most)

    def _run(
        self,
        scenario: str,
        base: Spec,
        changes: JsonObject,
        act: Callable[[Watching], None] | None,
        most: float,
    ) -> Run:
        name = f"verify-{scenario}-{secrets.token_hex(3)}"
        spec = dataclasses.replace(
            base,
            request=change(_redirected(base.request, scenario), {**changes, "TrainingJobName": name}),
            local=dataclasses.replace(base.local, evidence=True, warm=False),
        )
        if self._cancelled.is_set():
            raise CancelledError
        watching = Watching(self.home, name)
        local.submit(spec, home=self.home)

        def look(record: JobRecord) -> None:
            del record
            running = watching.running or 0.0
            if self._cancelled.is_set():
                watching.stop(now=True)
            elif running > most:
                watching.stop()
            elif act is not None:
                act(watching)

        record = local.wait(name, home=self.home, follow=look)
        return self._ended(record, watching)

    def _ended(self, record: JobRecord, watching: Watching) -> Run:
        path = self.home.job(record.name) / "evidence-algo-1.json"
        evidence: JsonObject = json.loads(path.read_bytes()) if path.exists() else {}
        tree = self.home.job(record.name) / "hosts/algo-1/ml"
        config = record.request.get("CheckpointConfig")
        return Run(
            record=record,
            log=watching.log(),
            model=_archive(record, "model"),
            output=_archive(record, "output"),
            checkpoints=_sizes(self.home, config["S3Uri"]) if config else {},
            changes=evidence.get("changes", {}),
            seconds=_seconds(record, evidence),
            stopped_after=watching.stopped_after,
            failure_file=(read_failure(tree) or b"").decode(errors="replace").strip(),
            read=frozenset(_read(tree / "checkpoints")),
        )


def change(request: JsonObject, changes: Mapping[str, Any]) -> JsonObject:
    """The request with members replaced; tables are merged, None takes a member out."""
    found = dict(request)
    for name, value in changes.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, dict) and isinstance(found.get(name), dict):
            found[name] = change(found[name], value)
        else:
            found[name] = value
    return found


def _redirected(request: JsonObject, scenario: str) -> JsonObject:
    """Nothing goes to where the spec's own jobs keep theirs, and no run waits for hours or tries again."""
    found = change(
        request,
        {
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/output"},
            "RetryStrategy": None,
        },
    )
    if "CheckpointConfig" in found:
        found = change(found, {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/checkpoints/{scenario}/"}})
    if "ResourceConfig" in found:
        found["ResourceConfig"] = change(found["ResourceConfig"], {"KeepAlivePeriodInSeconds": None})
    return found


def _seconds(record: JobRecord, evidence: JsonObject) -> float:
    """How long its first host ran: as its engine tells it, else as long as the phases Training and Stopping."""
    if evidence:
        return max(_epoch(evidence["finished"]) - _epoch(evidence["started"]), 0.0)
    return sum(
        (item.end or item.start) - item.start
        for item in record.transitions
        if item.status in ("Training", "Stopping")
    )


def _epoch(told: str) -> float:
    """Docker's times have nanoseconds, which Python 3.10 can't read."""
    whole, _, fraction = told.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LIMIT))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _archive(record: JobRecord, kind: str) -> dict[str, bytes] | None:
    artifact = record.result.get("artifacts", {}).get(kind)
    if artifact is None:
        return None
    path = Path(artifact["path"])
    if path.is_dir():  # CompressionType NONE
        return {str(file.relative_to(path)): b"" for file in path.rglob("*") if file.is_file()}
    with tarfile.open(path) as tar:
        return {
            member.name.removeprefix("./"): file.read(_LIMIT)
            for member in tar
            if member.isfile() and (file := tar.extractfile(member)) is not None
        }


def _read(root: Path) -> Iterator[str]:
    """A file's first reading is stamped also where later ones aren't (relatime)."""
    for file in root.rglob("*"):
        if file.is_file() and file.stat().st_atime_ns > file.stat().st_mtime_ns:
            yield str(file.relative_to(root))


def _sizes(home: Home, uri: str) -> dict[str, int]:
    prefix = uri.rstrip("/") + "/"
    return {info.uri.removeprefix(prefix): info.size for info in ObjectStore(home.s3).list(prefix)}
