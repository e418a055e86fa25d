"""Checks of a program that isn't ours: it is run as it is, and what it does is seen from outside."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from harness.conformance._finding import Finding, failed, not_checked, passed, warned
from harness.conformance._judge import last_words, said_failure, seconds, strayed
from harness.conformance._probed import UNUSUAL
from harness.conformance._run import Run, Runner, Watching
from harness.conformance._scenario import Scenario
from harness.conformance._subject import Subject, isolated
from harness.conformance._words import BUCKET
from harness.model import JsonObject, Spec

__all__ = ["judge_start", "own_scenarios", "start"]

_TEXT: Final[Mapping[str, str]] = {"harness-text": "adam"}
_NO_VALUE: Final = "harness-verify: this is no value"
_CHECKPOINTS: Final = f"s3://{BUCKET}/checkpoints/own/"
_UNKNOWN: Final = re.compile(
    r"unrecognized|unknown|unexpected|not recognized|no such option|extra fields", re.IGNORECASE
)
_MENDING: Final = {
    True: "save checkpoints as you go; or start the script by ContainerEntrypoint, as process 1",
    False: "handle SIGTERM in process 1 (signal.signal(signal.SIGTERM, …)), and start it without a shell, or by `exec`",
}
"""Whether AWS's toolkit is process 1 → how SIGTERM gets to where it is wanted."""
_TELLING: Final = 10
"""Lines of output from which on their number tells how far a program got."""
_NO_TOOLKIT: Final = re.compile(r"KeyError: 'SM_|SM_[A-Z_]+.{0,40}(?:not set|missing|undefined)")


def start(runner: Runner, most: float) -> Run:
    """The program as it is: all other runs are held against this one."""
    return runner.run("start", most=most)


def judge_start(subject: Subject, run: Run) -> Iterator[Finding]:
    """contract: A1, A2, A3, B10, D12, F1, F5, G5"""
    check = "starts with `train`"
    if run.status == "Failed":
        yield _did_not_start(subject, run)
        return
    if run.status == "Stopped":
        yield passed(
            "A1", check, f"{subject.program} runs; it was stopped after {seconds(run.stopped_after or 0)}."
        )
    else:
        yield passed(
            "A1", check, f"{subject.program} ran for {seconds(run.seconds)} and ended with exit code 0."
        )
        yield _success(run)
        yield _model(run)
    if subject.image is not None:
        yield strayed(run)


def _did_not_start(subject: Subject, run: Run) -> Finding:
    check = "starts with `train`"
    if run.exit_code in (126, 127):
        return failed("A2" if run.exit_code == 127 else "A3", check, f"the container didn't start: {run.reason}.",
                      "put an executable `train` on the PATH, or set an ENTRYPOINT in exec form")  # fmt: skip
    if _NO_TOOLKIT.search(run.log) and not subject.toolkit:
        return failed(
            "D12",
            check,
            f"the program wants SM_* variables ({last_words(run)}), and the platform sets none: they are the toolkit's.",
            "pip install sagemaker-training in the image, or read /opt/ml/input/config instead",
        )
    user = subject.image.user.partition(":")[0] if subject.image else ""
    if user not in ("", "root", "0") and "ermission denied" in run.log:
        return failed(
            "B5",
            check,
            f"{user}, the image's USER, may not do what it must ({last_words(run)}): /opt/ml is root's, and nobody else "
            "can read /opt/ml/input/config.",
            "drop USER from the Dockerfile; let `train` give up root's rights itself, once it has read its configuration",
        )
    told = f"{subject.program} ended with exit code {run.exit_code}: {run.reason or last_words(run)}"
    if subject.named.endswith((".toml", ".json", ".yaml", ".yml")):
        return failed("A1", check, f"{told}.", "see what `harness run` and `harness why` say of it")
    return failed(
        "A1",
        check,
        f"{told}. It was given {_given(subject)}; {last_words(run)}.",
        "if it wants more: --hyperparameter NAME=VALUE and --channel NAME=PATH, or give a spec instead of the image",
    )


def _given(subject: Subject) -> str:
    values = len(subject.request.get("HyperParameters") or {})
    channels = len(subject.request.get("InputDataConfig") or ())
    return f"{values or 'no'} hyperparameters and {channels or 'no'} channels"


def _success(run: Run) -> Finding:
    check = "exit code of success"
    if sign := said_failure(run):
        return _exits_zero(run, sign, check)
    return passed("G5", check, "it ended with exit code 0: Completed.")


def _exits_zero(run: Run, sign: str, check: str) -> Finding:
    return failed(
        "G5",
        check,
        f"it failed ({sign}), and ended with exit code 0 all the same: the job is {run.status}, and nobody notices.",
        "let the exception end the program, or sys.exit(1) where it is handled; a failure file alone says nothing",
    )


def _model(run: Run) -> Finding:
    if run.model:
        return passed("F1", "writes a model", f"model.tar.gz holds {_names(run.model)}.")
    return warned(
        "F5",
        "writes a model",
        "/opt/ml/model stayed empty: the job is Completed, but there is no model.tar.gz.",
        "save the model to /opt/ml/model before the program ends",
    )


def _names(files: Mapping[str, bytes]) -> str:
    shown = ", ".join(sorted(files)[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"


def own_scenarios(subject: Subject, base: Run, most: float) -> tuple[Scenario, ...]:
    """What is run once the program is known to run. `most`: seconds after which a run is stopped."""
    return (
        Scenario(
            names=("values",),
            title="unusual hyperparameters",
            run=lambda runner: _unusual(runner, most),
            judge=_judge_unusual,
        ),
        Scenario(
            names=("fail",),
            title="bad input",
            run=lambda runner: _sabotage(runner, most),
            judge=_judge_failure,
        ),
        Scenario(
            names=("term",),
            title="SIGTERM",
            run=lambda runner: _stopped(runner, base),
            judge=lambda runs: _judge_stopped(subject, base, runs),
        ),
        Scenario(
            names=("resume",),
            title="killing it, then starting again",
            run=lambda runner: _killed(runner, base, most),
            judge=_judge_resumed,
        ),
        Scenario(
            names=("alone",),
            title="without a network",
            run=lambda runner: _alone(runner, most),
            judge=_judge_alone,
        ),
        Scenario(
            names=("hosts",), title="two hosts", run=lambda runner: _two(runner, most), judge=_judge_two
        ),
    )


# ------------------------------------------------------------------------------------- values


def _unusual(runner: Runner, most: float) -> tuple[Run, ...]:
    extra = {f"harness-{name}": value for name, value in UNUSUAL.items()}
    run = runner.run("values", request={"HyperParameters": {**_TEXT, **extra}}, most=most)
    if run.status != "Failed":
        return (run,)
    return run, runner.run("text", request={"HyperParameters": dict(_TEXT)}, most=most)


def _judge_unusual(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: C1, C3"""
    check = "hyperparameters are strings"
    unusual, *rest = runs
    if unusual.status != "Failed":
        yield passed("C1", check, f"{len(UNUSUAL) + 1} more, with blanks, quotes, `$`, Unicode and 2,500 characters, "
                     "don't disturb it.")  # fmt: skip
        return
    (plain,) = rest
    unknown = next((line.strip() for line in plain.log.splitlines() if _UNKNOWN.search(line)), None)
    if plain.status == "Failed" and unknown is not None and "harness-text" in plain.log:
        yield not_checked(
            "C1",
            check,
            f"it refuses hyperparameters that it doesn't know ({unknown[:150]}).",
            "nothing, if that is meant; the SDKs add some of their own (K4)",
        )
    elif plain.status == "Failed":
        yield failed(
            "C1",
            check,
            f"a hyperparameter with the value adam ends it with exit code {plain.exit_code}: {_why(plain)}.",
            "every value arrives as a string, and is JSON only if the sender made it so: convert those that you know",
        )
    else:
        yield failed(
            "C3",
            check,
            f"legal values with blanks, quotes, `$`, Unicode or 2,500 characters end it with exit code "
            f"{unusual.exit_code}: {_why(unusual)}.",
            "pass values on as a list of arguments, never through a shell; read the file as UTF-8",
        )


def _why(run: Run) -> str:
    return said_failure(run) or run.reason or last_words(run)


# ------------------------------------------------------------------------------------ failure


def _sabotage(runner: Runner, most: float) -> tuple[Run, ...]:
    """Hyperparameters that are no values, channels without data."""
    spec = runner.spec
    own = [name for name in spec.request.get("HyperParameters") or {} if not name.startswith("sagemaker_")]
    channels = [upload for upload in spec.uploads if upload.kind == "channel"]
    if not own and not channels:
        return ()
    nothing = runner.home.root / "nothing"
    nothing.mkdir(exist_ok=True)
    (nothing / "harness-verify.txt").write_text(f"{_NO_VALUE}\n")
    broken = dataclasses.replace(
        spec,
        uploads=tuple(
            dataclasses.replace(upload, path=nothing) if upload.kind == "channel" else upload
            for upload in spec.uploads
        ),
    )
    changed = {"HyperParameters": dict.fromkeys(own, _NO_VALUE)} if own else {}
    return (runner.run("fail", spec=broken, request=changed, most=most),)


def _judge_failure(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: G5, F21, G18"""
    check = "exit code of failure"
    if not runs:
        yield not_checked("G5", check, "there are no hyperparameters and no local channels that could be spoilt.",
                          "give some: --hyperparameter, --channel, or a spec")  # fmt: skip
        return
    (run,) = runs
    spoilt = "with hyperparameters that are no values and channels without data"
    if run.status == "Failed":
        yield passed("G5", check, f"{spoilt} it ends with exit code {run.exit_code}: Failed.")
        if run.failure_file:
            yield passed("F21", "failure file", f"it says why: {run.failure_file.splitlines()[0][:120]}.")
        else:
            yield warned(
                "F21",
                "failure file",
                f"it leaves no /opt/ml/output/failure: all that is told is {run.reason!r}.",
                "write what went wrong to /opt/ml/output/failure (1,024 characters are kept) before exiting",
            )
    elif sign := said_failure(run):
        yield _exits_zero(run, sign, check)
    else:
        yield not_checked(
            "G5", check, f"even {spoilt} it ends with exit code {run.exit_code}, and no sign of failure."
        )


# ------------------------------------------------------------------------------------ signals


def _at(base: Run) -> float:
    """When to interrupt: half-way, and not so late that nobody wants to wait."""
    return min(base.seconds / 2, 10.0) if base.status == "Completed" else 5.0


def _after(delay: float, *, now: bool = False) -> Callable[[Watching], None]:
    def act(job: Watching) -> None:
        if (job.running or 0.0) >= delay:
            job.stop(now=now)

    return act


def _stopped(runner: Runner, base: Run) -> tuple[Run, ...]:
    return (runner.run("term", act=_after(_at(base))),)


def _judge_stopped(subject: Subject, base: Run, runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: G9, G10"""
    check = "SIGTERM within the grace"
    (run,) = runs
    grace = subject.spec.local.stop_grace
    if run.status == "Completed" or run.stopped_after is None:
        yield not_checked("G9", check, f"it ended after {seconds(run.seconds)}, before it could be stopped.")
        return
    took = max(run.seconds - run.stopped_after, 0.0)
    if not run.killed and _ran_on(base, run):
        yield warned(
            "G10" if subject.toolkit else "G9",
            check,
            f"SIGTERM changed nothing: it ran on to its end, {seconds(took)} later. One that has more to do is killed "
            "after 120 s in the cloud.",
            _MENDING[subject.toolkit],
        )
    elif not run.killed:
        kept = f"; what it had saved is in model.tar.gz: {_names(run.model)}" if run.model else ""
        yield passed(
            "G9", check, f"it ended {seconds(took)} after SIGTERM, with exit code {run.exit_code}{kept}."
        )
    elif subject.toolkit:
        yield warned(
            "G10",
            check,
            f"SIGTERM doesn't reach the script: AWS's toolkit, process 1, keeps it. It was killed after {grace:.0f} s "
            "(120 s in the cloud).",
            _MENDING[True],
        )
    else:
        yield failed(
            "G9",
            check,
            f"it ignored SIGTERM and was killed after {grace:.0f} s (120 s in the cloud): what it had not saved is lost.",
            _MENDING[False],
        )


def _ran_on(base: Run, run: Run) -> bool:
    """Whether it did all that it does undisturbed: it printed as much, or ran as long."""
    if base.status != "Completed" or run.exit_code != base.exit_code:
        return False
    lines, whole = run.log.count("\n"), base.log.count("\n")
    return lines >= whole if whole >= _TELLING else run.seconds > 0.9 * base.seconds


# --------------------------------------------------------------------------------- resumption


def _killed(runner: Runner, base: Run, most: float) -> tuple[Run, ...]:
    request = {"CheckpointConfig": {"S3Uri": _CHECKPOINTS}}
    delay = max(_at(base), base.seconds * 0.7) if base.status == "Completed" else min(most * 0.7, 20.0)
    first = runner.run("killed", request=request, act=_after(delay, now=True))
    if not first.checkpoints:
        return (first,)
    return first, runner.run("again", request=request, most=most)


def _judge_resumed(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: F12, F19"""
    check = "resumes from a checkpoint"
    first, *rest = runs
    if not rest:
        yield not_checked(
            "F12",
            check,
            f"in {seconds(first.seconds)} it wrote nothing to /opt/ml/checkpoints.",
            "a job that can be interrupted (spot) must save checkpoints there and look for them when it starts",
        )
        return
    (again,) = rest
    saved = ", ".join(sorted(first.checkpoints)[:3])
    if again.status == "Failed":
        yield failed("F19", check, f"killed and started again with its own checkpoints ({saved}), it fails: {_why(again)}.",
                     "write checkpoints to another name first, then rename them: a kill may come in the middle")  # fmt: skip
    elif read := sorted(again.read & set(first.checkpoints)):
        yield passed("F12", check, f"killed and started again, it read {', '.join(read[:3])}.")
    else:
        yield warned("F12", check, f"it saves {saved}, but didn't read it when it was started again: it begins anew.",
                     "look into /opt/ml/checkpoints at the start, and go on from the newest")  # fmt: skip


# ------------------------------------------------------------------------- isolation, many hosts


def _alone(runner: Runner, most: float) -> tuple[Run, ...]:
    return (runner.run("alone", spec=_read_only(isolated(runner.spec)), most=most),)


def _read_only(spec: Spec) -> Spec:
    """Every channel of plain S3 data as a FastFile one, which nobody can write to."""
    channels: list[JsonObject] = [dict(channel) for channel in spec.request.get("InputDataConfig") or ()]
    for channel in channels:
        source = channel.get("DataSource", {}).get("S3DataSource", {})
        plain = source.get("S3DataType") == "S3Prefix" and channel.get("InputMode", "File") == "File"
        if plain and channel["ChannelName"] != "code" and source["S3Uri"].endswith("/"):
            channel["InputMode"] = "FastFile"
    request = {**spec.request, **({"InputDataConfig": channels} if channels else {})}
    return dataclasses.replace(spec, request=request)


def _judge_alone(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: B16, D11"""
    (run,) = runs
    if run.status != "Failed":
        yield passed("D11", "no network", "it runs with EnableNetworkIsolation.")
        if run.record.request.get("InputDataConfig"):
            yield passed("B16", "read-only channels", "it runs with channels that it can't write to.")
        return
    if "Read-only file system" in run.log or "EROFS" in run.log:
        yield failed("B16", "read-only channels", f"it writes into its channels, which may be read-only: {_why(run)}.",
                     "copy what must be changed to /tmp")  # fmt: skip
        return
    yield warned("D11", "no network", f"with EnableNetworkIsolation it fails: {_why(run)}.",
                 "fetch nothing at run time, or don't isolate its jobs")  # fmt: skip


def _two(runner: Runner, most: float) -> tuple[Run, ...]:
    if "InstanceCount" not in runner.spec.request["ResourceConfig"]:
        return ()
    return (runner.run("hosts", request={"ResourceConfig": {"InstanceCount": 2}}, most=most),)


def _judge_two(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: F4, H3"""
    if not runs:
        yield not_checked("H3", "several hosts", "the request names groups of instances.")
        return
    (run,) = runs
    if run.status == "Failed":
        yield warned("H3", "several hosts", f"on two hosts it fails: {_why(run)}.",
                     "use ml.*.xlarge-sized single hosts, or read `hosts` and `current_host` of resourceconfig.json")  # fmt: skip
        return
    yield passed("H3", "several hosts", "it runs on two hosts.")
    if clashes := [note for note in run.record.result.get("notes", ()) if "(contract F4)" in note]:
        yield warned("F4", "names on several hosts", f"{clashes[0]}.",
                     "let one host write (current_host == hosts[0]), or put current_host into the name")  # fmt: skip
