"""The local target: submit a spec to this machine, follow it, stop it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import DiskError, StoreError, UsageError
from harness.home import Home
from harness.lifecycle import owned, recover, spawn
from harness.model import JsonObject, Plan, Spec, Treatment
from harness.store import JobRecord, StopRequest, Store

if TYPE_CHECKING:
    from harness.lifecycle import Taker
    from harness.machine import Probe

__all__ = ["check_strict", "collect", "describe", "forget", "make_plan", "run", "stop", "submit", "wait"]

_POLL: Final = 0.03


def make_plan(spec: Spec, home: Home | None = None, *, probe: Probe | None = None) -> Plan:
    """How this machine would run the spec; `probe`: a look at it that was begun before.

    Raises MachineError when it can't.
    """
    from harness.machine import Machine
    from harness.plan import make

    return make(spec, probe.machine() if probe else Machine.probe(home or Home.find()))


def check_strict(plan: Plan) -> None:
    """Raise StrictError when a field would have no effect here that the script could notice."""
    from harness.errors import StrictError

    lost = [
        item
        for item in plan.treatments
        if item.treatment is Treatment.UNCLASSIFIED
        or (item.treatment is Treatment.CLOUD_ONLY and item.visible)
    ]
    if lost:
        listed = "; ".join(f"{item.path}: {item.reason}" for item in lost)
        raise StrictError(f"--strict: the script would see a difference here in {listed}")


def submit(
    spec: Spec,
    *,
    home: Home | None = None,
    plan: Plan | None = None,
    accepting: Callable[[], None] = lambda: None,
) -> JobRecord:
    """Start the job in a supervisor of its own and return at once.

    `accepting` is called when all that takes time is done, right before the job goes on record: who is
    interrupted later has to stop the job.

    Raises JobExistsError, MachineError, or ClientError when the source can't be packed. Nothing is
    written when it raises.
    """
    home = home or Home.find()
    chosen = plan or make_plan(spec, home)
    if spec.local.strict:
        check_strict(chosen)
    if definitions := spec.request["AlgorithmSpecification"].get("MetricDefinitions"):
        from harness.telemetry import MetricScanner

        MetricScanner(definitions)  # refuses one that can't be evaluated before the job is accepted
    takers: list[Taker] = []
    with contextlib.ExitStack() as until_taken:
        result: JsonObject = {}
        if spec.local.warm:
            from harness.lifecycle import Keepers

            keepers = until_taken.enter_context(Keepers(home, spec, chosen))
            takers.append(keepers)
            result["warm"] = {"reused": False, "kept": False, "why": keepers.why}
        record = _put_on_record(spec, chosen, home, accepting, result)
        try:
            spawn(home, spec.job_name, *takers)
        except StoreError:
            with Store(home) as store:
                store.delete_job(spec.job_name)
            _remove(home.job(spec.job_name))
            raise
    return record


def _put_on_record(
    spec: Spec, plan: Plan, home: Home, accepting: Callable[[], None], result: JsonObject
) -> JobRecord:
    from harness.channels import materialise_source
    from harness.contract import messages
    from harness.objects import ObjectStore

    with Store(home) as store:
        store.check_free(spec.job_name)
        objects = ObjectStore(home.s3)
        notes = [*spec.warnings]
        drafts: dict[str, str] = {}
        try:
            for upload in spec.uploads:
                if upload.kind == "source":
                    drafts[upload.uri] = f"{upload.uri}.{os.urandom(6).hex()}"
                    draft = dataclasses.replace(upload, uri=drafts[upload.uri])
                    notes += materialise_source(draft, objects).warnings
            accepting()
            with store.transaction():
                record = store.create_job(spec, plan, message=messages.STARTING)
                # Of two jobs that are submitted with one name at once, only the winner's code gets here.
                for uri, made in drafts.items():
                    objects.put_file(uri, objects.path(made), move=True)
                if notes:
                    result = {**result, "notes": notes}
                if result:
                    store.merge_result(spec.job_name, **result)
        finally:
            for made in drafts.values():
                objects.delete(made)
    return record


def wait(
    name: str, *, home: Home | None = None, follow: Callable[[JobRecord], None] | None = None
) -> JobRecord:
    """Until the job is terminal; `follow` sees the record at every look."""
    home = home or Home.find()
    with Store(home) as store:
        looked = time.monotonic()
        while True:
            record = store.summary(name)
            if follow is not None:
                follow(record)
            if record.ended_for_good:
                return store.job(name)
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                if not owned(home, name):
                    recover(home, store)
            time.sleep(_POLL)


def run(
    spec: Spec | str | Path, *, home: Home | None = None, plan: Plan | None = None, **overrides: Any
) -> JobRecord:
    """Run a spec (or the spec in that file) here and wait for its end: `harness.run`."""
    if isinstance(spec, Spec):
        if overrides:
            raise UsageError("overrides go into harness.load(...) when the spec is already compiled")
        compiled = spec
    else:
        from harness.spec import load

        compiled = load(Path(spec), overrides=overrides)
    record = submit(compiled, home=home, plan=plan)
    return wait(record.name, home=home)


def describe(name: str, *, home: Home | None = None) -> JsonObject:
    """The job in DescribeTrainingJob's shape. Raises UsageError when there is none."""
    from harness.lifecycle import describe

    with Store(home or Home.find()) as store:
        record = store.job(name)
        points = [point for _, point in store.metrics(name, sampled=False)]
    return describe(record, points)


def stop(name: str, *, now: bool = False, home: Home | None = None) -> JobRecord:
    """Ask for a stop (contract: G9), or with `now` for a kill; returns at once.

    A job that stands in a debugger is killed: a SIGTERM would reach nothing that runs. What was asked for is
    in the record's `stop_request`.
    """
    from harness.lifecycle import stands

    home = home or Home.find()
    with Store(home) as store:
        kill = now or stands(home.job(name) / "hosts")
        record = store.request_stop(name, StopRequest.KILL if kill else StopRequest.STOP)
        recover(home, store)
        return record


def collect(
    *,
    older_than: float = 7 * 86400,
    everything: bool = False,
    dry_run: bool = False,
    home: Home | None = None,
) -> JsonObject:
    """Free what is no longer needed: directories of jobs that ended longer than `older_than` seconds
    ago, caches, and what dead supervisors left in the engines. Artifacts in the object store stay.

    Warm hosts that no job is using go as well.

    Returns what was (or, with `dry_run`, would be) removed: job names and bytes, and ids of warm hosts; and
    what can't be removed now, one sentence each.
    """
    from harness.channels import collect as collect_cache
    from harness.channels import used
    from harness.engines.warm import forget_last_words
    from harness.lifecycle import LEFT, clean_dead, clean_left, end_idle, warm_sets
    from harness.objects import ObjectStore

    home = home or Home.find()
    removed: list[str] = []
    freed = 0
    problems = []
    if dry_run:
        warm = [str(each["id"]) for each in warm_sets(home) if each["state"] == "idle"]
    else:
        # Before the store is opened: on a full disk it can't be until something is gone.
        warm = end_idle(home, "`harness gc` was called")
    with Store(home) as store:
        if not dry_run:
            recover(home, store)
            problems = [*clean_left(home, store), *clean_dead(home)]
            problems += [
                f"the warm host {each['id']} can't be ended: the process {each['pid']}, which keeps it, doesn't answer"
                for each in warm_sets(home)
                if each["state"] == "silent"
            ]
            forget_last_words(home)
        horizon = time.time() - (0 if everything else older_than)
        unclean = store.claims(LEFT)
        for record in store.jobs(limit=None, newest_first=False):
            if not record.ended_for_good or (record.ended or record.created) > horizon:
                continue
            size = _forget(store, record.name, unclean, dry_run=dry_run)
            if size is not None:
                freed += size
                removed.append(record.name)
        keep = [path for name in store.unfinished() for path in used(home.job(name))]
    cache = collect_cache(home.cache, keep=keep, dry_run=dry_run)
    if not dry_run:
        ObjectStore(home.s3).sweep()
    return {
        "jobs": removed,
        "job_bytes": freed,
        "cache_bytes": cache,
        "warm": warm,
        "problems": problems,
    }


def forget(names: Sequence[str], *, statuses: Collection[str], home: Home | None = None) -> list[str]:
    """Remove record and directory of those of these jobs that ended with such a status; their names.

    As `collect` does it: artifacts in the object store stay. Raises DiskError when a directory can't be removed.
    """
    from harness.lifecycle import LEFT

    removed: list[str] = []
    if not names:
        return removed
    with Store(home or Home.find()) as store:
        unclean = store.claims(LEFT)
        for name in names:
            with contextlib.suppress(UsageError):  # somebody else removed it
                if store.summary(name).status in statuses and _forget(store, name, unclean) is not None:
                    removed.append(name)
    return removed


def _forget(store: Store, name: str, unclean: Collection[str], *, dry_run: bool = False) -> int | None:
    """Remove a job that has ended; bytes that were freed, or None when it has to stay.

    `unclean`: jobs that left something behind; without the record nobody would know what to look for.
    """
    directory = store.home.job(name)
    if name in unclean or (directory.exists() and owned(store.home, name)):
        return None
    size = _size(directory)
    if not dry_run:
        _remove(directory)
        store.delete_job(name)
    return size


def _remove(directory: Path) -> None:
    from harness.engines import remove_tree

    try:
        remove_tree(directory)
    except OSError as error:
        raise DiskError(
            f"can't remove {directory} ({error.strerror}: {error.filename}): "
            "see whom it belongs to, remove it, and call `harness gc` again"
        ) from error


def _size(directory: Path) -> int:
    total = 0
    for root, _, files in os.walk(directory):  # goes on where it can't read
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 - 50,000 files are a lot of Paths
    return total
