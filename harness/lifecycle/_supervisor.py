"""The state machine of a job, run by the process that owns it.

Starting → Pending → Downloading → Training → Uploading → Completed, Failed or Stopped (contract: G3).
What a phase needs of an earlier one is on disk or in the store, never only in memory, so a supervisor
that takes over a dead one's job goes on where the record says it was: hosts of the docker engine live
on and are attached to; those of the sandbox died with the supervisor, which is our fault and not the
script's, so the attempt ends as InternalServerError and RetryStrategy may start another (contract: G21).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness import contract
from harness.engines import Engine, Host
from harness.errors import (
    ClientError,
    DiskError,
    EngineError,
    InternalServerError,
    JobError,
    MachineError,
    StoreError,
)
from harness.home import VARIABLE, Home
from harness.lifecycle._artifacts import Artifacts
from harness.lifecycle._capacity import try_claim
from harness.lifecycle._clean import LEFT, clean
from harness.lifecycle._entries import record_entries
from harness.lifecycle._keeper import Keeper
from harness.lifecycle._outcome import COMPLETED, STOPPED, Outcome, failed, failed_by, unforeseen
from harness.lifecycle._owner import own, recover
from harness.lifecycle._pause import Pause
from harness.lifecycle._prepare import Preparation, Prepared, piped
from harness.lifecycle._strict import staggered, tell_of_strictness
from harness.lifecycle._watch import StopCause, Verdict, Watch
from harness.model import ExitStatus, Gpu, Plan, Spec
from harness.store import Progress, StopRequest, Store, from_json

if TYPE_CHECKING:
    from harness.channels import Feeder

__all__ = ["supervise"]

_CLAIM_POLL: Final = 0.1
_RECOVER_EVERY: Final = 2.0
_TAKEN_OVER: Final = "the process that had this job was killed"


def supervise(home: Home, name: str, lock: int | None = None) -> None:
    """Own the job until it is terminal. Returns at once when another process owns it, and when hosts were kept
    warm not before they are gone: until then other jobs are handed over to this process.

    `lock`: the lock's descriptor, if this process inherited it. The process is to be the job's alone.
    """
    # By it engines tell what is theirs, also when the job was submitted to a place that it doesn't name.
    os.environ[VARIABLE] = str(home.root)
    keeper = Keeper(home)
    keeper.work(lambda name, lock: _supervise(home, name, lock, keeper), name, lock)


def _supervise(home: Home, name: str, lock: int | None, keeper: Keeper) -> None:
    with own(home, name, lock) as mine:
        if not mine:
            return
        with Store(home) as store:
            store.reserve()
            try:
                Supervisor(home, store, name, keeper).run()
            except StoreError:
                raise  # nothing can be put on record: the next command tries again
            except Exception as error:
                # Else every command would start a supervisor for this job, for ever.
                traceback.print_exc()
                outcome = unforeseen(error, home.job(name))
                _end(store, keeper, name, outcome, clean=False, training_end=None)


def _end(
    store: Store, keeper: Keeper, name: str, outcome: Outcome, *, clean: bool, training_end: float | None
) -> None:
    """The terminal transition. What is not `clean` is put on record with it, for `harness gc`."""
    keeper.job_is_over()
    with store.transaction():
        store.transition(
            name,
            outcome.secondary,
            outcome.message,
            status=outcome.status,
            failure_reason=outcome.reason,
            training_end=training_end,
        )
        if not clean:
            store.claim(name, {LEFT: [name]})


class _StopAskedError(Exception):
    """Somebody asked to stop the job while it had no hosts."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Supervisor:
    """Runs one job. Everything it does is safe to do again after a crash."""

    def __init__(self, home: Home, store: Store, name: str, keeper: Keeper) -> None:
        self.home = home
        self.store = store
        self.name = name
        self._keeper = keeper
        record = store.job(name)
        self.spec = from_json(Spec, record.spec)
        self.plan = from_json(Plan, record.plan)
        self.request = self.spec.request
        self.created = record.created
        self.hostname_seed = keeper.hostname_seed(name)
        self.cold_reason = str(record.result.get("warm", {}).get("why") or _TAKEN_OVER)
        self.directory = home.job(name)
        self._progress_at = 0.0
        self._clock = time.time() - time.monotonic()
        self.pause = Pause(store, name, self.directory / "hosts", debugged=self.spec.local.debug is not None)
        self._unsaved: list[str] = []
        self.feeder: Feeder | None = None
        """Feeds the Pipe channels of this attempt, if it has any."""

    # ------------------------------------------------------------------- the whole

    def run(self) -> None:
        """Until the job is terminal and nothing of it is left but its results."""
        if self.store.summary(self.name).ended_for_good:
            return
        outcome = self._stored("final")
        try:
            engine = self._keeper.engine(self)
        except MachineError as error:
            outcome = outcome or failed_by(InternalServerError(str(error)))
            self._finish(None, outcome, f"the {self.plan.engine} engine can't be used: {error}")
            return
        if outcome is None:
            outcome = self._attempts(engine)
            # From here on nothing is packed again: what it would be packed from is being removed.
            self.store.merge_result(self.name, final=dataclasses.asdict(outcome))
        self._finish(engine, outcome)

    def _attempts(self, engine: Engine) -> Outcome:
        while True:
            outcome = self._attempt(engine)
            self._keep_post_mortem(outcome)
            if not (outcome.retryable and self._may_retry()):
                self._tell_of_trees(outcome)
                return outcome
            self._start_again(outcome)

    def _attempt(self, engine: Engine) -> Outcome:
        try:
            if (outcome := self._stored("outcome")) is None:
                outcome = self._judge(engine, *(self._recorded_end() or self._train(engine)))
            if outcome.retryable and self._may_retry():
                return outcome
            return self._upload(outcome)
        except _StopAskedError as asked:
            return STOPPED[asked.cause]
        except JobError as error:
            return failed_by(error)
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            if isinstance(error, MachineError):
                return failed_by(InternalServerError(str(error)))
            return unforeseen(error, self.directory)
        finally:
            if self.feeder is not None:
                self.feeder.close()
                self.feeder = None

    def _data_problem(self) -> JobError | None:
        return None if self.feeder is None else self.feeder.problem()

    def _hosts(self, engine: Engine) -> tuple[Prepared, Mapping[str, Host]]:
        """The running hosts: started now, or those that outlived an earlier supervisor.

        None are left when they died with it while they were being stopped.
        """
        preparation = Preparation(self)
        record = self.store.summary(self.name)
        if record.secondary_status in ("Training", "Stopping") and self.store.hosts(self.name):
            prepared = preparation.again()
            hosts = engine.attach(self.name)
            if set(hosts) != set(prepared.trees):
                if self._stop_cause() is not None:
                    return prepared, {}
                raise InternalServerError(
                    "the job's supervisor was killed and its hosts died with it; run it again"
                )
            if piped(self.request):  # a reader can't tell that from the end of its epoch
                raise InternalServerError(
                    "the job's supervisor was killed, and with it what fed its Pipe channels; run it again"
                )
            return prepared, hosts
        if record.attempt > 1 or self.store.hosts(self.name):
            engine.close(self.name)  # what an earlier attempt, or a supervisor that was killed, left
        gpus = self._acquire()
        prepared = preparation.fresh(gpus)
        self.check_stop()
        self._to("Training", contract.messages.TRAINING, training_start=self._training_start())
        # Every host's launch is on record before the first one starts: a supervisor that takes over
        # must know what to look for.
        self.store.put_hosts(self.name, prepared.records)
        engine.prepare(prepared.launches)
        self._tell_of_warmth()
        if len(prepared.launches) == 1:
            return prepared, {launch.host: engine.start(launch) for launch in prepared.launches}
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="start") as pool:
            starting = staggered(self, prepared.launches, engine.start)
            started = pool.map(starting, prepared.launches)
            return prepared, {host.name: host for host in started}

    def _tell_of_warmth(self) -> None:
        """On record whether the hosts were warm, and whether they will be."""
        if (told := self._keeper.told()) is not None:
            self.store.merge_result(self.name, warm=told)

    def _tell_of_hosts(self, prepared: Prepared, hosts: Mapping[str, Host]) -> None:
        """On record how others find them, and what this machine couldn't give them."""
        try:
            record_entries(self.directory, hosts.values(), prepared.launches)
        except OSError as error:
            self.note(f"`harness shell` can't find the hosts of this job ({error})")
        for host in hosts.values():
            for note in host.notes:
                self.note(note)

    def _recorded_end(self) -> tuple[Prepared, Verdict] | None:
        """The end of hosts that an earlier supervisor saw and recorded, but didn't live to judge."""
        hosts = self.store.hosts(self.name)
        if not hosts or any(host.exit_code is None for host in hosts):
            return None
        first = self.store.job(self.name).result.get("failed_first")
        ended = {
            host.name: ExitStatus(code=host.exit_code or 0, oom_killed=host.oom_killed)
            for host in sorted(hosts, key=lambda host: (host.name != first, not host.exit_code))
        }
        return Preparation(self).again(), Verdict(ended=ended, cause=self._stop_begun(), killed=False)

    def _train(self, engine: Engine) -> tuple[Prepared, Verdict]:
        from harness.telemetry import MetricScanner, Sampler, Witness

        prepared, hosts = self._hosts(engine)
        if not hosts:
            return prepared, Verdict(ended={}, cause=self._stop_cause(), killed=True)
        self._tell_of_hosts(prepared, hosts)
        definitions = self.request["AlgorithmSpecification"].get("MetricDefinitions", [])
        scanner = MetricScanner(definitions)
        checkpoints = Artifacts(self, prepared).checkpoints
        verdict = Watch(
            self.store,
            self.name,
            hosts,
            logs=prepared.logs,
            scanner=scanner,
            sampler=Sampler(prepared.trees, prepared.gpus),
            grace=self.spec.local.stop_grace,
            limits=lambda: StopCause.DATA if self._data_problem() else self._limit_passed(),
            companions=(checkpoints.tick, self.pause.look),
            problem=self.note,
            witness=Witness(
                self.directory / "post-mortem",
                trees=prepared.trees,
                gpus=prepared.gpus,
                hang_after=self.spec.local.hang_after,
                note=self.note,
                paused=lambda: self.pause.standing,
                python=self.plan.python,
            ),
        ).run()
        checkpoints.settle()
        final = scanner.finish()
        if final:
            self.store.add_metrics(self.name, final)
        for problem in scanner.problems():
            self.note(problem)
        return prepared, verdict

    def _judge(self, engine: Engine, prepared: Prepared, verdict: Verdict) -> Outcome:
        """How the job will end, on record before anything is uploaded."""
        try:
            # Closing the engine gives the hosts' files to the user: only then can they surely be read.
            engine.close(self.name)
        except EngineError as error:
            # How the hosts ended is known all the same, and it is what the user wants to know.
            self.note(str(error))
        self._tell_of_warmth()
        outcome = self._decide(prepared, verdict)
        self.store.merge_result(
            self.name,
            outcome=dataclasses.asdict(outcome),
            stop={"cause": verdict.cause, "killed": verdict.killed} if verdict.cause else None,
        )
        return outcome

    def _decide(self, prepared: Prepared, verdict: Verdict) -> Outcome:
        """Exit codes decide (contract: G5), unless the job was stopped (contract: G7, G12)."""
        if verdict.cause in STOPPED:
            return STOPPED[verdict.cause]
        if (problem := self._data_problem()) is not None:
            return failed_by(problem)  # whatever the script made of data that broke off
        failure = verdict.first_failure
        if failure is None:
            return COMPLETED
        host, status = failure
        if status.vanished:
            return failed_by(InternalServerError(f"host {host} is gone: {status.error or 'it vanished'}"))

        from harness.outputs import read_failure

        text = contract.failure_reason(status, read_failure(prepared.trees[host]))
        if len(verdict.ended) > 1:
            self.note(f"{host} failed first, with exit code {status.code}; the other hosts were stopped")
        return failed(text)

    def _keep_post_mortem(self, outcome: Outcome) -> None:
        """What the end of this attempt left to look at. Never changes how it ended."""
        if outcome.status == "Completed":
            return
        try:
            from harness.lifecycle._post_mortem import keep

            verdict = keep(
                self.home,
                self.store,
                self.name,
                status=outcome.status,
                secondary=outcome.secondary,
                reason=outcome.reason,
            )
            self.store.merge_result(self.name, verdict=verdict)
        except Exception as error:
            if not isinstance(error, (OSError, StoreError)):
                traceback.print_exc()
            self.note(f"no post-mortem was kept: {error}")

    def _upload(self, outcome: Outcome) -> Outcome:
        """Outputs go up however the job ended (contract: F6, F7)."""
        prepared = Preparation(self).again()
        self._to("Uploading", contract.messages.UPLOADING)
        try:
            Artifacts(self, prepared).upload()
        except DiskError as error:
            return self._kept(
                outcome, ClientError(f"Artifact upload failed:Insufficient disk space ({error})")
            )
        except ClientError as error:
            return self._kept(outcome, error)
        except _StopAskedError as asked:
            self.note(f"the job was killed while its outputs were packed; they were kept in {self._trees}")
            return STOPPED[asked.cause] if outcome.status == "Completed" else outcome
        return outcome

    def _tell_of_trees(self, outcome: Outcome) -> None:
        """Where to find the outputs of hosts that were lost: nothing of theirs was uploaded."""
        record = self.store.job(self.name)
        if (
            outcome.retryable
            and record.hosts
            and "artifacts" not in record.result
            and any(self._trees.glob("*/ml"))
        ):
            self.note(f"what the hosts wrote was kept in {self._trees}")

    def _kept(self, outcome: Outcome, error: ClientError) -> Outcome:
        """What the hosts wrote stays in the job's directory: nothing is lost but the archive."""
        why = f" ({error})" if outcome.status == "Failed" else ""
        self.note(f"the outputs were kept in {self._trees}{why}")
        return outcome if outcome.status == "Failed" else failed_by(error)

    def _finish(self, engine: Engine | None, outcome: Outcome, problem: str | None = None) -> None:
        """Leave nothing but results. What can't be removed doesn't change how the job ended."""
        self._keeper.job_is_over()
        if engine is not None:
            try:
                done = outcome.status == "Completed" and not self.spec.local.evidence
                clean(self.home, self.name, engine, completed=done)
            except Exception as error:
                traceback.print_exc()
                problem = str(error)
        if problem is not None:
            self.note(f"something of the job is left ({problem}); `harness gc` will try to remove it")
        tell_of_strictness(self, outcome.status)
        started = self.store.summary(self.name).training_start
        _end(
            self.store,
            self._keeper,
            self.name,
            outcome,
            clean=problem is None,
            training_end=max(self._now(), started) if started else None,
        )

    # ------------------------------------------------------------------- its parts

    def _acquire(self) -> tuple[Gpu, ...]:
        """Wait, as Pending, for the GPUs and slots that the plan needs."""
        from harness.machine import Machine
        from harness.plan import allowed_gpus

        self._to("Pending", contract.messages.PENDING)
        machine = allowed_gpus(Machine.probe(self.home), self.spec.local.gpus) if self.plan.gpus else ()
        next_recovery = time.monotonic() + _RECOVER_EVERY
        while True:
            self.check_stop()
            gpus = try_claim(
                self.store,
                self.name,
                hosts=len(self.plan.hosts),
                gpus=self.plan.gpus,
                machine=machine,
                preferred=self._keeper.preferred_gpus(),
            )
            if gpus is not None:
                return gpus
            time.sleep(_CLAIM_POLL)
            if time.monotonic() >= next_recovery:
                # What we wait for may be held by a job whose supervisor was killed.
                next_recovery = time.monotonic() + _RECOVER_EVERY
                recover(self.home, self.store)

    def check_stop(self) -> None:
        if self.store.summary(self.name).stop_request is not StopRequest.NONE:
            self._to("Stopping", contract.messages.STOPPING, status="Stopping")
            raise _StopAskedError(StopCause.USER)
        if (cause := self._limit_passed()) is not None:
            raise _StopAskedError(cause)

    def _limit_passed(self) -> str | None:
        """MaxRuntime counts from the start of Training over all attempts (contract: G6, G7), MaxWait
        from the job's creation (contract: G8); neither what the job stood in a debugger."""
        limits = self.request.get("StoppingCondition", {})
        now = self._now() - self.pause.seconds
        started = self.store.summary(self.name).training_start
        if started is not None and now - started > limits.get("MaxRuntimeInSeconds", 86400):
            return StopCause.MAX_RUNTIME
        wait = limits.get("MaxWaitTimeInSeconds")
        if wait is not None and now - self.created > wait:
            return StopCause.MAX_WAIT
        return None

    def _training_start(self) -> float:
        return self.store.summary(self.name).training_start or self._now()

    def _now(self) -> float:
        """Epoch seconds by a clock that nobody sets: what limits are counted by."""
        return self._clock + time.monotonic()

    def _stored(self, key: str) -> Outcome | None:
        stored: Mapping[str, Any] | None = self.store.job(self.name).result.get(key)
        return None if stored is None else Outcome(**stored)

    def _stop_begun(self) -> str | None:
        """Why hosts of this attempt were told to stop by a supervisor that didn't live to see the end."""
        stop: Mapping[str, Any] = self.store.job(self.name).result.get("stop") or {}
        return stop.get("cause")

    def _stop_cause(self) -> str | None:
        asked = self.store.summary(self.name).stop_request is not StopRequest.NONE
        return StopCause.USER if asked else self._stop_begun()

    def _may_retry(self) -> bool:
        attempts = self.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
        record = self.store.summary(self.name)
        return record.attempt <= attempts and record.stop_request is StopRequest.NONE

    def _start_again(self, outcome: Outcome) -> None:
        from harness.lifecycle._post_mortem import set_aside

        attempt = self.store.summary(self.name).attempt
        with contextlib.suppress(OSError):
            set_aside(self.directory, attempt)
        self.note(f"attempt {attempt} ended with {outcome.reason}; RetryStrategy starts another")
        with self.store.transaction():
            # How the hosts of this attempt ended says nothing about the next.
            self.store.merge_result(self.name, outcome=None, stop=None, failed_first=None, verdict=None)
            self.store.put_hosts(self.name, ())
            self._to("Starting", contract.messages.STARTING, status="InProgress", attempt=attempt + 1)

    def _to(self, secondary: str, message: str, **changes: Any) -> None:
        self.store.transition(self.name, secondary, message, **changes)

    def note(self, sentence: str) -> None:
        """Something the user should read in the summary. On a full disk it waits for the next note."""
        self._unsaved.append(sentence)
        notes = self.store.job(self.name).result.get("notes", [])
        with contextlib.suppress(StoreError):
            self.store.merge_result(self.name, notes=list(dict.fromkeys([*notes, *self._unsaved])))
            self._unsaved.clear()

    def progress(self, done: int, total: int, what: str) -> None:
        """For long phases: a few rows a second, and the place where a stop request is noticed."""
        now = time.monotonic()
        if now - self._progress_at < 0.1 and done < total:
            return
        self._progress_at = now
        with contextlib.suppress(StoreError):  # only for show: what matters fails by itself
            self.store.set_progress(self.name, Progress(what=what, done=done, total=total))
        job = self.store.summary(self.name)
        if job.secondary_status != "Uploading":
            self.check_stop()
        elif job.stop_request is StopRequest.KILL:
            raise _StopAskedError(StopCause.USER)

    @property
    def _trees(self) -> Path:
        return self.directory / "hosts"

    @property
    def logs(self) -> Path:
        return self.home.logs(self.name, self.store.summary(self.name).attempt)
