"""The store's SQLite side."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from harness.errors import JobExistsError, StoreError, UsageError
from harness.home import Home
from harness.model import MetricPoint, Plan, Spec, Transition
from harness.store._codec import to_json
from harness.store._records import TERMINAL, HostRecord, JobRecord, Progress, StopRequest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY, arn TEXT NOT NULL,
    status TEXT NOT NULL, secondary_status TEXT NOT NULL, failure_reason TEXT,
    created REAL NOT NULL, modified REAL NOT NULL,
    training_start REAL, training_end REAL, ended REAL,
    attempt INTEGER NOT NULL DEFAULT 1, stop_request INTEGER NOT NULL DEFAULT 0,
    engine TEXT NOT NULL, instance_type TEXT NOT NULL, instance_count INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (created);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, created);
CREATE TABLE IF NOT EXISTS documents (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, kind TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (job, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transitions (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL,
    status TEXT NOT NULL, start REAL NOT NULL, end REAL, message TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hosts (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, name TEXT NOT NULL,
    stream TEXT NOT NULL, gpus TEXT NOT NULL, exit_code INTEGER, oom_killed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metrics (
    id INTEGER PRIMARY KEY, job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    host TEXT NOT NULL, name TEXT NOT NULL, timestamp_ms INTEGER NOT NULL, value REAL NOT NULL,
    sampled INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS metrics_by_job ON metrics (job, name, timestamp_ms);
CREATE TABLE IF NOT EXISTS progress (
    job TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    what TEXT NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (
    job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, kind TEXT NOT NULL, item TEXT NOT NULL,
    PRIMARY KEY (kind, item)
) WITHOUT ROWID;
"""

_VERSION = 1
_RESERVE: Final = 4 << 20
"""Bytes of write-ahead log kept ready: about a thousand pages, more than any job's last transactions."""
_LISTED = (
    "name, arn, status, secondary_status, failure_reason, created, modified, training_start,"
    " training_end, ended, attempt, stop_request, engine, instance_type, instance_count"
)


class Store:
    """The jobs of one `$HARNESS_HOME`. One instance per thread; cheap to open (a few milliseconds).

    Every method raises StoreError when the database can't be read or written.
    """

    _open: ClassVar[set[int]] = set()

    @classmethod
    def any_open(cls) -> bool:
        """Whether this process has a store open: SQLite's state must not be carried through a fork."""
        return bool(cls._open)

    def __init__(self, home: Home) -> None:
        """Open, and create where it is not there. Raises StoreError when the place can't be written."""
        self.home = home
        home.ensure()
        try:
            self._db = sqlite3.connect(home.db, timeout=30, isolation_level=None)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        self._open.add(id(self))
        try:
            self._set_up()
        except sqlite3.Error as error:
            self.close()
            raise self._unusable(error) from error
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing at NORMAL; only a power cut can lose the last transactions.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if found > _VERSION:
            raise StoreError(
                f"{self.home.db} was made by a newer harness (schema {found}, this one knows {_VERSION}):"
                " upgrade the harness or point HARNESS_HOME elsewhere"
            )
        if found < _VERSION:
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _unusable(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"the state in {self.home.db} can't be used ({error}): see that its disk has space and can be "
            "written, or set HARNESS_HOME to another directory"
        )

    def close(self) -> None:
        self._db.close()
        self._open.discard(id(self))

    def reserve(self) -> None:
        """Have room for the transactions that end a job, should its script fill the disk.

        The write-ahead log is written over from its start after each checkpoint, and it is not cut while
        anybody has the store open: what is allocated now can't run out later.
        """
        log = self.home.db.with_name(f"{self.home.db.name}-wal")
        with contextlib.suppress(OSError, StoreError), self.transaction():  # so that nobody else appends
            if log.stat().st_size < _RESERVE:
                descriptor = os.open(log, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.posix_fallocate(descriptor, 0, _RESERVE)
                finally:
                    os.close(descriptor)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside happens, or nothing; other writers wait. May be nested."""
        nested = self._db.in_transaction
        if nested:
            yield self._db
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # After some errors, a full disk for one, SQLite has rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[sqlite3.Row]:
        try:
            return self._db.execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _row(self, sql: str, arguments: Sequence[Any]) -> sqlite3.Row | None:
        return next(iter(self._rows(sql, arguments)), None)

    # ------------------------------------------------------------------ jobs

    def check_free(self, name: str) -> None:
        """Raise JobExistsError when the name is taken (contract: G35)."""
        if self._row("SELECT 1 FROM jobs WHERE name = ?", (name,)):
            raise _taken(name)

    def create_job(self, spec: Spec, plan: Plan, *, message: str) -> JobRecord:
        """A new job in InProgress/Starting. Raises JobExistsError (contract: G35)."""
        now = time.time()
        resources = spec.request.get("ResourceConfig", {})
        try:
            with self.transaction() as db:
                db.execute(
                    "INSERT INTO jobs (name, arn, status, secondary_status, created, modified, engine,"
                    " instance_type, instance_count) VALUES (?, ?, 'InProgress', 'Starting', ?, ?, ?, ?, ?)",
                    (
                        spec.job_name,
                        spec.job_arn,
                        now,
                        now,
                        plan.engine,
                        resources.get("InstanceType") or plan.hosts[0].instance_type,
                        len(plan.hosts),
                    ),
                )
                documents = {"spec": to_json(spec), "plan": to_json(plan), "result": {}}
                db.executemany(
                    "INSERT INTO documents VALUES (?, ?, ?)",
                    [(spec.job_name, kind, json.dumps(body)) for kind, body in documents.items()],
                )
                db.execute(
                    "INSERT INTO transitions VALUES (?, 0, 'Starting', ?, NULL, ?)",
                    (spec.job_name, now, message),
                )
        except sqlite3.IntegrityError as error:
            raise _taken(spec.job_name) from error
        return self.job(spec.job_name)

    def job(self, name: str) -> JobRecord:
        """The job in full. Raises UsageError with a did-you-mean when there is none."""
        row = self._row(f"SELECT {_LISTED} FROM jobs WHERE name = ?", (name,))
        if row is None:
            raise self._unknown(name)
        documents = {
            kind: json.loads(body)
            for kind, body in self._rows("SELECT kind, body FROM documents WHERE job = ?", (name,))
        }
        spec = documents.get("spec", {})
        return _record(
            row,
            spec=spec,
            request=spec.get("request", {}),
            plan=documents.get("plan", {}),
            result=documents.get("result", {}),
            transitions=self.transitions(name),
            hosts=self.hosts(name),
        )

    def summary(self, name: str) -> JobRecord:
        """The job without its documents: cheap enough to poll."""
        row = self._row(f"SELECT {_LISTED} FROM jobs WHERE name = ?", (name,))
        if row is None:
            raise self._unknown(name)
        return _record(row)

    def _unknown(self, name: str) -> UsageError:
        import difflib

        names = [row[0] for row in self._rows("SELECT name FROM jobs ORDER BY created DESC LIMIT 500")]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else "see `harness jobs`"
        return UsageError(f"there is no job {name!r}: {hint}")

    def jobs(
        self,
        *,
        limit: int | None = 50,
        status: str | None = None,
        name_contains: str | None = None,
        newest_first: bool = True,
    ) -> list[JobRecord]:
        """Jobs without their documents, by creation time."""
        where: list[str] = []
        arguments: list[Any] = []
        if status is not None:
            where.append("status = ?")
            arguments.append(status)
        if name_contains:
            where.append("instr(name, ?) > 0")
            arguments.append(name_contains)
        sql = f"SELECT {_LISTED} FROM jobs"
        if where:
            sql += " WHERE " + " AND ".join(where)
        sql += f" ORDER BY created {'DESC' if newest_first else 'ASC'}"
        if limit is not None:
            sql += " LIMIT ?"
            arguments.append(limit)
        return [_record(row) for row in self._rows(sql, arguments)]

    def unfinished(self) -> list[str]:
        """Names of the jobs that are not in a terminal state, oldest first."""
        # Not "NOT IN (terminal)": that would read every row, this reads only the index of those few.
        return [
            row[0]
            for row in self._rows(
                "SELECT name FROM jobs WHERE status IN ('InProgress', 'Stopping') ORDER BY created"
            )
        ]

    def delete_job(self, name: str) -> None:
        """Forget a job's rows. Its directory and objects are the caller's affair."""
        with self.transaction() as db:
            db.execute("DELETE FROM jobs WHERE name = ?", (name,))

    # ------------------------------------------------------- state transitions

    def transitions(self, name: str) -> tuple[Transition, ...]:
        return tuple(
            Transition(status=row["status"], start=row["start"], end=row["end"], message=row["message"])
            for row in self._rows("SELECT * FROM transitions WHERE job = ? ORDER BY number", (name,))
        )

    def transition(self, name: str, secondary: str, message: str, **changes: Any) -> None:
        """Enter a secondary status (contract: G3, G4), changing other columns of the job with it.

        Entering the open status again only changes its message. A terminal job stays as it is.
        """
        now = time.time()
        with self.transaction() as db:
            row = db.execute("SELECT status FROM jobs WHERE name = ?", (name,)).fetchone()
            if row is None or row["status"] in TERMINAL:
                return
            last = db.execute(
                "SELECT number, status FROM transitions WHERE job = ? ORDER BY number DESC LIMIT 1", (name,)
            ).fetchone()
            if last is not None and last["status"] == secondary:
                db.execute(
                    "UPDATE transitions SET message = ? WHERE job = ? AND number = ?",
                    (message, name, last["number"]),
                )
            else:
                number = 0 if last is None else last["number"] + 1
                if last is not None:
                    db.execute(
                        "UPDATE transitions SET end = ? WHERE job = ? AND number = ?",
                        (now, name, last["number"]),
                    )
                db.execute("DELETE FROM progress WHERE job = ?", (name,))
                terminal = changes.get("status") in TERMINAL
                db.execute(
                    "INSERT INTO transitions VALUES (?, ?, ?, ?, ?, ?)",
                    (name, number, secondary, now, now if terminal else None, message),
                )
            changes = {"secondary_status": secondary, "modified": now, **changes}
            if changes.get("status") in TERMINAL:
                changes["ended"] = now
                db.execute("DELETE FROM claims WHERE job = ?", (name,))
            assignments = ", ".join(f"{column} = ?" for column in changes)
            db.execute(f"UPDATE jobs SET {assignments} WHERE name = ?", [*changes.values(), name])

    def merge_result(self, name: str, **entries: Any) -> None:
        """Add entries to the job's result document."""
        with self.transaction() as db:
            row = db.execute(
                "SELECT body FROM documents WHERE job = ? AND kind = 'result'", (name,)
            ).fetchone()
            body = json.loads(row["body"]) if row is not None else {}
            body.update(entries)
            db.execute("REPLACE INTO documents VALUES (?, 'result', ?)", (name, json.dumps(to_json(body))))

    def request_stop(self, name: str, request: StopRequest) -> JobRecord:
        """Ask the job's supervisor to stop it. The request only grows: a kill stays a kill.

        Raises UsageError for a job that ended, worded as AWS words it (contract: G11).
        """
        with self.transaction() as db:
            job = self.summary(name)
            if job.ended_for_good:
                raise UsageError(
                    f"The request was rejected because the training job is in status {job.status}: {name}"
                )
            db.execute("UPDATE jobs SET stop_request = max(stop_request, ?) WHERE name = ?", (request, name))
        return self.summary(name)

    # ------------------------------------------------------------------- hosts

    def hosts(self, name: str) -> tuple[HostRecord, ...]:
        return tuple(
            HostRecord(
                name=row["name"],
                stream=row["stream"],
                gpus=tuple(json.loads(row["gpus"])),
                exit_code=row["exit_code"],
                oom_killed=bool(row["oom_killed"]),
            )
            for row in self._rows("SELECT * FROM hosts WHERE job = ? ORDER BY name", (name,))
        )

    def put_hosts(self, name: str, hosts: Sequence[HostRecord]) -> None:
        """The hosts of the job's present attempt, replacing those of the one before."""
        with self.transaction() as db:
            db.execute("DELETE FROM hosts WHERE job = ?", (name,))
            db.executemany(
                "INSERT INTO hosts (job, name, stream, gpus) VALUES (?, ?, ?, ?)",
                [(name, host.name, host.stream, json.dumps(host.gpus)) for host in hosts],
            )

    def host_ended(self, name: str, host: str, exit_code: int, *, oom_killed: bool) -> None:
        with self.transaction() as db:
            db.execute(
                "UPDATE hosts SET exit_code = ?, oom_killed = ? WHERE job = ? AND name = ?",
                (exit_code, oom_killed, name, host),
            )

    # ------------------------------------------------------ metrics, progress

    def add_metrics(self, name: str, points: Iterable[MetricPoint], *, sampled: bool = False) -> None:
        """Append values; `sampled` are the harness's own (CPUUtilization…), not the script's."""
        with self.transaction() as db:
            db.executemany(
                "INSERT INTO metrics (job, host, name, timestamp_ms, value, sampled) VALUES (?, ?, ?, ?, ?, ?)",
                [(name, p.host, p.name, p.timestamp_ms, p.value, sampled) for p in points],
            )

    def metrics(
        self, name: str, *, after: int = 0, sampled: bool | None = None
    ) -> list[tuple[int, MetricPoint]]:
        """(id, point) in order of arrival, from the one after id `after` on."""
        sql = "SELECT * FROM metrics WHERE job = ? AND id > ?"
        arguments: list[Any] = [name, after]
        if sampled is not None:
            sql += " AND sampled = ?"
            arguments.append(sampled)
        return [
            (
                row["id"],
                MetricPoint(
                    name=row["name"], value=row["value"], timestamp_ms=row["timestamp_ms"], host=row["host"]
                ),
            )
            for row in self._rows(sql + " ORDER BY id", arguments)
        ]

    def set_progress(self, name: str, progress: Progress | None) -> None:
        with self.transaction() as db:
            if progress is None:
                db.execute("DELETE FROM progress WHERE job = ?", (name,))
            else:
                db.execute(
                    "REPLACE INTO progress VALUES (?, ?, ?, ?)",
                    (name, progress.what, progress.done, progress.total),
                )

    def progress(self, name: str) -> Progress | None:
        row = self._row("SELECT * FROM progress WHERE job = ?", (name,))
        return None if row is None else Progress(what=row["what"], done=row["done"], total=row["total"])

    # ------------------------------------------------------------------ claims

    def claims(self, kind: str) -> dict[str, str]:
        """Who holds what of this machine: item → job."""
        return {
            row["item"]: row["job"]
            for row in self._rows("SELECT item, job FROM claims WHERE kind = ?", (kind,))
        }

    def claim(self, name: str, items: Mapping[str, Sequence[str]]) -> bool:
        """Take all of these for the job, or nothing when one of them is taken (kind → items)."""
        try:
            with self.transaction() as db:
                db.executemany(
                    "INSERT INTO claims (job, kind, item) VALUES (?, ?, ?)",
                    [(name, kind, item) for kind, group in items.items() for item in group],
                )
        except sqlite3.IntegrityError:
            return False
        return True

    def release(self, name: str) -> None:
        with self.transaction() as db:
            db.execute("DELETE FROM claims WHERE job = ?", (name,))


def _taken(name: str) -> JobExistsError:
    return JobExistsError(
        f"Training job names must be unique: {name} exists already"
        " (names of finished jobs can't be used again); choose another --job-name"
    )


def _record(row: sqlite3.Row, **documents: Any) -> JobRecord:
    values = {key: row[key] for key in row.keys()}  # noqa: SIM118 - a Row iterates over its values
    values["stop_request"] = StopRequest(values["stop_request"])
    return JobRecord(**values, **documents)
