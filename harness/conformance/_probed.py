"""Checks of an image whose toolkit runs a script: the script is our probe, so everything is seen from inside."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, Final

from harness.conformance._finding import Finding, failed, not_checked, passed, warned
from harness.conformance._judge import last_words, seconds, strayed
from harness.conformance._run import Run, Runner, Watching
from harness.conformance._scenario import Scenario
from harness.conformance._subject import isolated
from harness.conformance._words import BUCKET
from harness.model import JsonObject

__all__ = ["UNUSUAL", "probed_scenarios"]

UNUSUAL: Final[Mapping[str, str]] = {
    "blanks": "two  words",
    "quotes": "it's \"quoted\", isn't it",
    "dollar": "$HOME ${PATH}",
    "star": "*",
    "unicode": "ünï 中文 🙂",
    "long": "x" * 2500,
    "empty": "",
    "json": '{"a":[1,null]}',
    "zeros": "007",
    "number": "1e-5",
    "truth": "True",
}
"""Legal values that programs and toolkits stumble over; quotes are in pairs, or a shell would stop at them."""
_CHECKPOINTS: Final = f"s3://{BUCKET}/checkpoints/probe/"
_DATA: Final = "/opt/ml/input/data"
_SAID: Final = "harness-verify: this failure is asked for"


def probed_scenarios(grace: float) -> tuple[Scenario, ...]:
    """What is run, and what is judged by it. `grace`: seconds between SIGTERM and SIGKILL."""
    return (
        Scenario(names=("values",), title="starting it with unusual values", run=_start, judge=_judge_start),
        Scenario(names=("fail",), title="a script that fails", run=_fail, judge=_judge_failure),
        Scenario(
            names=("term", "resume"),
            title="SIGTERM, then starting again",
            run=_interrupted,
            judge=lambda runs: _judge_interrupted(runs, grace),
        ),
        Scenario(names=("alone",), title="without a network", run=_isolated, judge=_judge_isolated),
        Scenario(names=("hosts",), title="two hosts", run=_two, judge=_judge_two),
    )


def _mode(mode: str, **values: str) -> JsonObject:
    return {"HyperParameters": {"harness-mode": mode, **values}}


# ------------------------------------------------------------------------------------- start


def _start(runner: Runner) -> tuple[Run, ...]:
    return (runner.run("start", request=_mode("look", **UNUSUAL)),)


def _judge_start(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: A1, A9, A20, A22, B1, B16, C1, C8, C17, D3, D16, D17, D29, E3, F1, F2, G5, I5"""
    (run,) = runs
    facts = run.facts()
    if facts is None or run.status != "Completed":
        yield failed(
            "A1",
            "starts with `train`",
            f"the toolkit's `train` didn't run a script to its end: {run.reason or last_words(run)}.",
            "try `train` by hand: docker run --rm IMAGE train; sagemaker-training must be importable by its Python",
        )
        return
    yield _holds(
        facts["process_1"][-1:] and posixpath.basename(facts["process_1"][-1]) == "train",
        passed("A1", "starts with `train`", f"process 1 is {' '.join(facts['process_1'])[:100]}."),
        failed(
            "A1", "starts with `train`", f"process 1 is {' '.join(facts['process_1'])[:100]}: no `train` in it.",
            "an ENTRYPOINT in exec form must pass its argument on",
        ),
    )  # fmt: skip
    yield passed(
        "G5", "exit code of success", f"a script that ends well makes exit code {run.exit_code}, Completed."
    )
    yield _holds(
        facts["cwd"] == "/opt/ml/code",
        passed("A22", "the script's directory", "the script runs in /opt/ml/code."),
        failed("A22", "the script's directory", f"the script runs in {facts['cwd']}, not in /opt/ml/code.",
               "use the toolkit's own `train`"),
    )  # fmt: skip
    yield from _hyperparameters(run.record.request, facts)
    yield _environment(run.record.request, facts)
    yield _variables(facts)
    yield from _channels(facts)
    yield _outputs(run, facts)
    yield strayed(run)


def _hyperparameters(request: JsonObject, facts: JsonObject) -> Iterator[Finding]:
    sent: Mapping[str, str] = request["HyperParameters"]
    check = "hyperparameters are strings"
    if facts["hyperparameters"] == sent:
        yield passed(
            "C1", check, f"all {len(sent)} are read as they were sent, 2,500 characters and Unicode too."
        )
    else:
        yield failed("C1", check, f"its hyperparameters.json isn't what was sent: {str(facts['hyperparameters'])[:150]}.",
                     "read /opt/ml/input/config/hyperparameters.json as UTF-8, as root")  # fmt: skip
    check = "unusual values in SM_HPS"
    mine = {name: value for name, value in sent.items() if not name.startswith("sagemaker_")}
    expected = {name: _decoded(value) for name, value in mine.items()}
    try:
        found = json.loads(facts["environment"].get("SM_HPS", "null"))
    except ValueError:
        found = None
    if found == expected:
        yield passed("D17", check, "every value reaches the script in SM_HPS, whatever is in it.")
    else:
        wrong = sorted(
            name for name in expected if not isinstance(found, dict) or found.get(name) != expected[name]
        )
        yield failed("D17", check, f"SM_HPS lacks or changes {', '.join(wrong)}.",
                     "use the sagemaker-training toolkit's `train`, 5.1 or newer")  # fmt: skip
    yield _arguments(mine, facts["argv"])


def _arguments(sent: Mapping[str, str], argv: list[str]) -> Finding:
    """contract: D27, D28, D29"""
    check = "unusual values as arguments"
    changed = sorted(name for name, value in sent.items() if not _follows(argv, name, _word(_decoded(value))))
    if not changed:
        return passed("D30", check, "every value reaches the script as one argument, unchanged.")
    return passed(
        "D29",
        check,
        f"as in AWS's images the arguments go through a shell: of {len(sent)} values it changed {', '.join(changed)}. "
        "Read such values from SM_HPS.",
    )


def _follows(argv: list[str], name: str, word: str) -> bool:
    option = f"-{name}" if len(name) == 1 else f"--{name}"
    return option in argv and argv[argv.index(option) + 1 : argv.index(option) + 2] == [word]


def _decoded(value: str) -> Any:
    """As the toolkit reads it (contract: D24)."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _word(value: Any) -> str:
    """As the toolkit writes it (contract: D28)."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    return str(value)


def _environment(request: JsonObject, facts: JsonObject) -> Finding:
    sent: Mapping[str, str] = request.get("Environment") or {}
    wrong = sorted(name for name, value in sent.items() if facts["environment"].get(name) != value)
    return _holds(
        not wrong,
        passed("D3", "environment, verbatim", "values with blanks, quotes, `$`, Unicode and newlines arrive as they are."),
        failed("D3", "environment, verbatim", f"{', '.join(wrong)} arrives changed.",
               "don't set or rewrite the environment in the entrypoint"),
    )  # fmt: skip


_VARIABLES: Final = (
    "SM_HOSTS", "SM_CURRENT_HOST", "SM_NETWORK_INTERFACE_NAME", "SM_NUM_CPUS", "SM_NUM_GPUS", "SM_MODEL_DIR",
    "SM_INPUT_DIR", "SM_INPUT_CONFIG_DIR", "SM_OUTPUT_DIR", "SM_OUTPUT_DATA_DIR", "SM_CHANNELS", "SM_CHANNEL_TRAINING",
    "SM_HPS", "SM_USER_ARGS", "SM_MODULE_DIR", "SM_MODULE_NAME", "SM_USER_ENTRY_POINT", "SM_LOG_LEVEL",
    "SM_RESOURCE_CONFIG", "SM_INPUT_DATA_CONFIG", "SM_TRAINING_ENV",
)  # fmt: skip


def _variables(facts: JsonObject) -> Finding:
    missing = [name for name in _VARIABLES if name not in facts["environment"]]
    number = sum(name.startswith("SM_") for name in facts["environment"])
    return _holds(
        not missing,
        passed("D17", "SM_* variables", f"the script finds {number} of them."),
        failed("D17", "SM_* variables", f"{', '.join(missing)} is not set.",
               "use the sagemaker-training toolkit's `train`, 5.1 or newer"),
    )  # fmt: skip


def _channels(facts: JsonObject) -> Iterator[Finding]:
    data = facts["data"]
    expected = {
        f"{channel}/{name}": f"{channel} {number}"
        for channel in ("training", "fast")
        for number, name in ((1, "a b.txt"), (2, "below/ü.txt"))
    }
    lost = sorted(name for name, text in expected.items() if data.get(name) != text)
    yield _holds(
        not lost,
        passed("E3", "channels", "a File and a FastFile channel are read whole, names with blanks and Unicode too."),
        failed("E3", "channels", f"{', '.join(lost)} can't be read below {_DATA}.",
               "the image needs a UTF-8 locale: ENV LANG=C.UTF-8 LC_ALL=C.UTF-8"),
    )  # fmt: skip
    yield _holds(
        facts["writes_to_fast"] == "EROFS",
        passed("B16", "read-only channel", "writing into a FastFile channel is refused (EROFS), and it goes on."),
        failed("B16", "read-only channel", f"a write into a FastFile channel ended with {facts['writes_to_fast'] or 'success'}.",
               "let no entrypoint remount or copy the channels"),
    )  # fmt: skip


def _outputs(run: Run, facts: JsonObject) -> Finding:
    refused = {path: error for path, error in facts["refused"].items() if error}
    if refused:
        path, error = next(iter(refused.items()))
        return failed("F1", "writes a model", f"{path} can't be written ({error}) by user id {facts['uid']}.",
                      "run as root: drop USER from the Dockerfile")  # fmt: skip
    files = sorted(run.model or {})
    return _holds(
        files == ["algo-1.txt", "probe.txt"],
        passed("F1", "writes a model", "what the script wrote to /opt/ml/model is in model.tar.gz, and nothing else."),
        failed("F1", "writes a model", f"model.tar.gz holds {', '.join(files) or 'nothing'}, the script wrote algo-1.txt "
               "and probe.txt.", "let nothing but the script write to /opt/ml/model, or remove from it"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ failure


def _fail(runner: Runner) -> tuple[Run, ...]:
    return (runner.run("fail", request=_mode("fail")),)


def _judge_failure(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: G5, G13, G14, G17, F21"""
    (run,) = runs
    if run.status != "Failed":
        yield failed(
            "G5",
            "exit code of failure",
            f"the script raised an exception, and the container ended with exit code {run.exit_code}: the job is "
            f"{run.status}.",
            "the last command of the entrypoint must be the program itself: no `|| true`, no `; exit 0`, no pipe",
        )
        return
    yield passed(
        "G5", "exit code of failure", f"an exception in the script makes exit code {run.exit_code}, Failed."
    )
    if run.failure_file:
        yield passed(
            "F21", "failure file", "it says why in /opt/ml/output/failure, which is the FailureReason."
        )
    else:
        yield warned("F21", "failure file", f"it leaves no /opt/ml/output/failure: all that is told is {run.reason!r}.",
                     "write what went wrong to /opt/ml/output/failure before exiting")  # fmt: skip
    if _SAID in run.reason:
        yield passed("G14", "reason of a failure", "the exception's own words are in the FailureReason.")
    else:
        yield warned("G14", "reason of a failure", f"the exception's words aren't in the FailureReason: {run.reason}.",
                     "with the PyTorch toolkit errors are captured; else write the failure file yourself")  # fmt: skip


# ---------------------------------------------------------------------- SIGTERM and resumption


def _interrupted(runner: Runner) -> tuple[Run, ...]:
    checkpoints = {"CheckpointConfig": {"S3Uri": _CHECKPOINTS}}

    def stop(job: Watching) -> None:
        if "harness-verify: waiting" in job.log():
            job.stop()

    first = runner.run("term", request={**_mode("wait"), **checkpoints}, act=stop)
    return first, runner.run("again", request={**_mode("look"), **checkpoints})


def _judge_interrupted(runs: tuple[Run, ...], grace: float) -> Iterator[Finding]:
    """contract: G9, G10, F12, F14, F19"""
    run, again = runs
    took = run.seconds - (run.stopped_after or 0.0)
    reached = "signal.txt" in (run.model or {})
    if run.stopped_after is None:
        yield not_checked(
            "G9", "SIGTERM within the grace", f"the probe didn't come to wait: {last_words(run)}."
        )
        return
    if reached and not run.killed:
        yield passed(
            "G9",
            "SIGTERM within the grace",
            f"SIGTERM reached the script, which ended {seconds(took)} later.",
        )
    else:
        yield warned(
            "G10",
            "SIGTERM within the grace",
            f"SIGTERM doesn't reach the script: AWS's toolkit, process 1, keeps it. It was killed after {grace:.0f} s "
            "(120 s in the cloud).",
            "save checkpoints as you go; or start the script by ContainerEntrypoint, as process 1",
        )
    yield _holds(
        "step.txt" in run.checkpoints,
        passed("F14", "checkpoints are kept", "what was in /opt/ml/checkpoints when it was stopped is in S3."),
        failed("F14", "checkpoints are kept", "the checkpoint that the script wrote isn't in S3.",
               "let no entrypoint replace /opt/ml/checkpoints by a link or a mount"),
    )  # fmt: skip
    facts = again.facts() or {}
    yield _holds(
        facts.get("checkpoints", {}).get("step.txt") == "7",
        passed("F12", "resumes from a checkpoint", "a new job finds the checkpoint before its first line."),
        failed("F12", "resumes from a checkpoint", f"a new job didn't find the checkpoint: {again.reason or 'it is gone'}.",
               "let no entrypoint clean /opt/ml/checkpoints"),
    )  # fmt: skip


# ------------------------------------------------------------------------- isolation, many hosts


def _isolated(runner: Runner) -> tuple[Run, ...]:
    return (runner.run("alone", spec=isolated(runner.spec), request=_mode("isolated")),)


def _judge_isolated(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: D11"""
    (run,) = runs
    facts = run.facts()
    if run.status != "Completed" or facts is None:
        yield failed("D11", "no network", f"without a network it fails: {run.reason or last_words(run)}.",
                     "fetch nothing at start: install what it needs when the image is built")  # fmt: skip
        return
    reached = [address for address, error in facts["outside"].items() if not error]
    yield _holds(
        not reached,
        passed(
            "D11",
            "no network",
            "it starts and ends well with EnableNetworkIsolation; nothing outside was reached.",
        ),
        failed(
            "D11",
            "no network",
            f"{', '.join(reached)} was reached in spite of EnableNetworkIsolation.",
            "report it",
        ),
    )


def _two(runner: Runner) -> tuple[Run, ...]:
    return (runner.run("hosts", request={**_mode("meet"), "ResourceConfig": {"InstanceCount": 2}}),)


def _judge_two(runs: tuple[Run, ...]) -> Iterator[Finding]:
    """contract: H1, H3, D17"""
    (run,) = runs
    facts = [run.facts(host) for host in ("algo-1", "algo-2")]
    if run.status != "Completed" or None in facts:
        yield failed("H1", "several hosts", f"on two hosts it fails: {run.reason or last_words(run)}.",
                     "resolve peers by name, with retries, and don't rely on /etc/hosts")  # fmt: skip
        return
    found = [each for each in facts if each is not None]
    broken = [f"{host}: {why}" for each in found for host, why in each["peers"].items() if why]
    yield _holds(
        not broken,
        passed("H1", "several hosts", "two hosts find each other by name and talk over TCP."),
        failed(
            "H1",
            "several hosts",
            f"a peer can't be reached ({'; '.join(broken)}).",
            "let no firewall run in the image",
        ),
    )
    names = {each["environment"].get("SM_CURRENT_HOST") for each in found}
    yield _holds(
        names == {"algo-1", "algo-2"},
        passed("H3", "each host is told its name", "SM_CURRENT_HOST is algo-1 on one and algo-2 on the other."),
        failed("H3", "each host is told its name", f"SM_CURRENT_HOST is {', '.join(map(str, names))}.",
               "use the toolkit's own `train`"),
    )  # fmt: skip


def _holds(holds: object, yes: Finding, no: Finding) -> Finding:
    return yes if holds else no
