"""The hostile user: whatever comes in, one clear sentence comes out, and nothing is lost or left behind.

Mistakes in the spec are refused by the command line before anything is written; what goes wrong later ends
the job in a true state. Where the engine makes no difference the sandbox runs it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.home import Home
from harness.lifecycle import owned
from harness.objects import ObjectStore
from harness.store import Store
from tests.engines.test_sandbox_as_an_ordinary_user import USER, interpreter_for_all
from tests.jobs.conftest import ROLE, Job, Submit, processes_of
from tests.unit.test_channels_remote import Bucket, bucket  # noqa: F401 - a fixture

Write = Callable[..., Path]
Change = Callable[[Path], object]

COMPLETED, FAILED, BAD_SPEC, MACHINE_CANNOT, STOPPED = 0, 1, 2, 3, 4
REPOSITORY = Path(__file__).parents[2]


def cli(*words: object, timeout: float = 90, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line, as a process of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    done = subprocess.run(
        [sys.executable, "-m", "harness", *map(str, words)],
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        **streams | options,
    )
    assert "Traceback" not in (done.stderr or ""), done.stderr
    assert "unexpectedly" not in (done.stderr or ""), done.stderr
    return done


def sentence(stderr: str) -> str:
    """The one error that was told, warnings aside."""
    lines = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 1500
    return lines[0]


def files_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def leftovers(home: Home) -> list[str]:
    """What an ended job must not leave: owners, processes, mounts, containers, networks, others' files."""
    found = []
    with Store(home) as store:
        jobs = [Job(home, record.name) for record in store.jobs(limit=None)]
    for job in jobs:
        found += [f"{job.name} is {job.record.status}"] * (not job.record.ended_for_good)
        found += [f"{job.name} has a supervisor"] * owned(home, job.name)
        found += [f"{job.name} has process {process}" for process in processes_of(job)]
        if job.record.engine == "docker":
            for kind in (["ps", "-aq"], ["network", "ls", "-q"], ["volume", "ls", "-q"]):
                label = f"label=harness.job={job.name}"
                listed = subprocess.run(
                    ["docker", *kind, "--filter", label], capture_output=True, text=True, check=True
                )
                found += [f"{job.name} has {kind[0]} {each}" for each in listed.stdout.split()]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    found += [f"mount {each}" for each in mounts if each.startswith(f"{home.root}/")]
    owners = set()
    for root, directories, files in os.walk(home.root):  # any depth, which pathlib can't
        for name in (*directories, *files):
            with contextlib.suppress(FileNotFoundError):
                owners.add(Path(root, name).lstat().st_uid)
    found += [f"files of user {uid}" for uid in owners - {os.getuid()}]
    found += [f"half a file: {path}" for path in home.s3.rglob(".harness-tmp.*")]
    found += [f"half a file: {path}" for path in (home.s3 / ".harness/tmp").glob("*")]
    return found


def settle(home: Home) -> None:
    """A supervisor leaves a moment after its job has ended."""
    deadline = time.monotonic() + 10
    while found := leftovers(home):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def nothing_left(home: Path) -> Iterator[None]:
    """Holds for every test here."""
    yield
    if home.exists() and os.access(home, os.W_OK):
        settle(Home(home))


def until_said(home: Path, name: str, text: bytes) -> None:
    log = home / f"jobs/{name}/logs/1/algo-1.log"
    deadline = time.monotonic() + 60
    while not log.exists() or text not in log.read_bytes():
        assert time.monotonic() < deadline, f"{name} never said {text!r}"
        time.sleep(0.05)


# ------------------------------------------------------------------ refused, nothing written


def entry_is_gone(spec: Path) -> None:
    (spec.parent / "code/train.py").unlink()


def source_is(text: str) -> Change:
    return replace('source_dir = "code"', f"source_dir = {json.dumps(text)}")


def replace(old: str, new: str) -> Change:
    def change(spec: Path) -> None:
        text = spec.read_text()
        assert old in text
        spec.write_text(text.replace(old, new))

    return change


def add(text: str) -> Change:
    """At the top, where no table has begun."""
    return lambda spec: spec.write_text(f"{text}\n{spec.read_text()}")


def append(text: str) -> Change:
    return lambda spec: spec.write_text(f"{spec.read_text()}\n{text}\n")


def dangling(spec: Path) -> None:
    (spec.parent / "code/lib").mkdir()
    (spec.parent / "code/lib/link").symlink_to("/nowhere/at-all")


REFUSED: dict[str, tuple[Change, list[str]]] = {
    "entry point missing": (entry_is_gone, ["entry_point train.py", "not found", "source_dir code"]),
    "entry point is a directory": (
        lambda spec: (entry_is_gone(spec), (spec.parent / "code/train.py").mkdir()),
        ["entry_point train.py", "is a directory"],
    ),
    "entry point outside": (
        replace('entry_point = "train.py"', 'entry_point = "../train.py"'),
        ["../train.py", "inside source_dir"],
    ),
    "source_dir is a file": (source_is("code/train.py"), ["source_dir code/train.py is a file", "directory"]),
    "source_dir absent": (source_is("nope"), ["source_dir nope does not exist"]),
    "source_dir with a dangling link": (dangling, ["dangling link", "lib/link", "/nowhere/at-all", "remove"]),
    "hyperparameter too long": (
        append(f'[hyperparameters]\nlong = "{"a" * 3000}"'),
        ["hyperParameters", "less than or equal to 2500", "'long'", "3002 characters"],
    ),
    "101 hyperparameters": (
        append("[hyperparameters]\n" + "\n".join(f"h{n} = 1" for n in range(101))),
        ["hyperParameters", "less than or equal to 100"],
    ),
    "hyperparameters are no table": (add("hyperparameters = 5"), ["hyperparameters must be a table"]),
    "channel with a blank": (
        append('[inputs]\n"my train" = "s3://b/c/"'),
        ["'my train'", "channelName", "pattern"],
    ),
    "instance_type with a typo": (
        replace("ml.m5.large", "ml.p4d.24xlarg"),
        ["'ml.p4d.24xlarg'", "did you mean ml.p4d.24xlarge?"],
    ),
    "max_wait below max_run": (
        add("use_spot_instances = true\nmax_run = 100\nmax_wait = 10"),
        ["MaxWaitTimeInSeconds", "10", "100"],
    ),
    "regex that does not compile": (
        append("[[metric_definitions]]\nName = 'loss'\nRegex = 'loss=('"),
        ["'loss'", "does not compile", "position 5"],
    ),
    "regex without a group": (
        append("[[metric_definitions]]\nName = 'loss'\nRegex = 'loss=[0-9]+'"),
        ["'loss'", "no group", "parentheses"],
    ),
    "data path absent": (
        append('[inputs]\ntraining = "no/data"'),
        ["channel training", "no/data", "No such file"],
    ),
    "unknown key": (add('instance_typ = "ml.m5.large"'), ["'instance_typ'", "did you mean 'instance_type'?"]),
    "unknown key of [local]": (append("shm_sise = '1g'"), ["'shm_sise'", "did you mean 'shm_size'?"]),
    "instance_count is a word": (
        replace("instance_count = 1", 'instance_count = "one"'),
        ["instance_count must be an integer"],
    ),
    "instance_count below one": (
        replace("instance_count = 1", "instance_count = -1"),
        ["instanceCount", "greater than or equal to"],
    ),
    "no role": (replace(f'role = "{ROLE}"', ""), ["role"]),
    "no TOML": (lambda spec: spec.write_text("not = = toml"), ["not valid TOML", "line 1"]),
    "not UTF-8": (lambda spec: spec.write_bytes(b"name = '\xff\xfe'"), ["can't be read", "UTF-8"]),
    "empty": (lambda spec: spec.write_text(""), ["role is missing"]),
    "a NUL in a path": (append('[inputs]\ntraining = "a\\u0000b"'), ["no path", "null byte"]),
    "a path too long": (source_is("d" * 300), ["no path", "File name too long"]),
    "a line break in a path": (source_is("two\nlines"), ["two\\nlines", "does not exist"]),
    "nested without end": (
        lambda spec: spec.write_text(f"tags = {'[' * 3000}{']' * 3000}"),
        ["nested more than 40 levels"],
    ),
    "dependencies are no strings": (add("dependencies = [1]"), ["dependencies must be a list of strings"]),
    "metric definitions are no list": (add("MetricDefinitions = 5"), ["MetricDefinitions must be a list"]),
    "a size that nothing has": (append("shm_size = '99999999999999999999g'"), ["shm_size", "no size"]),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_spec_is_refused_and_nothing_is_written(
    write_spec: Write,
    home: Path,
    capfd: pytest.CaptureFixture[str],
    command: str,
    change: Change,
    words: list[str],
) -> None:
    spec = write_spec("print(1)", engine="sandbox")
    change(spec)
    assert main([command, str(spec)]) == BAD_SPEC
    captured = capfd.readouterr()
    told = sentence(captured.err)
    for word in words:
        assert word in told
    assert captured.out == ""
    assert files_in(home / "s3") == files_in(home / "jobs") == []


REQUESTS: dict[str, tuple[str, str, list[str]]] = {
    "billion laughs": (
        "request.yaml",
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
        + "Tags: *a9\n",
        ["more than 100,000 values"],
    ),
    "a loop": ("request.yaml", "TrainingJobName: n\nTags: &t [*t]\n", ["nested more than 40 levels"]),
    "code in YAML": (
        "request.yaml",
        'TrainingJobName: !!python/object/apply:os.system ["touch pwned"]\n',
        ["not valid YAML", "os.system"],
    ),
    "deep JSON": (
        "request.json",
        '{"Tags": ' + "[" * 9000 + "]" * 9000 + "}",
        ["nested more than 40 levels"],
    ),
    "half of JSON": ("request.json", '{"TrainingJobName": ', ["not valid JSON", "line 1"]),
    "a list": ("request.json", "[]", ["table of words"]),
    "nothing of a request": ("request.json", "{}", ["no CreateTrainingJob request"]),
    "only a name": (
        "request.json",
        '{"TrainingJobName": "n"}',
        ["5 validation errors detected", "'roleArn'", "'algorithmSpecification'", "'stoppingCondition'"],
    ),
    "members of the wrong kind": (
        "request.json",
        json.dumps(
            {
                "TrainingJobName": "n",
                "Tags": [None],
                "StoppingCondition": {"MaxRuntimeInSeconds": None},
                "InputDataConfig": [{}],
                "AlgorithmSpecification": {"MetricDefinitions": [{"Regex": None}]},
            }
        ),
        ["'inputDataConfig.1.member.channelName'", "'stoppingCondition.maxRuntimeInSeconds'"],
    ),
}


@pytest.mark.parametrize(("file", "text", "words"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_that_is_none(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str], file: str, text: str, words: list[str]
) -> None:
    (tmp_path / file).write_text(text)
    started = time.monotonic()
    assert main(["run", str(tmp_path / file)]) == BAD_SPEC
    assert time.monotonic() - started < 10
    told = sentence(capfd.readouterr().err)
    for word in words:
        assert word in told
    assert files_in(home / "jobs") == []
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "name", ["-x", "a b", "ä", "x_y", "..", "", "a/b", "a" * 64, "x-", "a\n", "$(id)"], ids=repr
)
def test_a_wrong_job_name(
    write_spec: Write, home: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """# contract: K1"""
    assert main(["run", str(write_spec("", engine="sandbox")), "--job-name", name]) == BAD_SPEC
    assert "'trainingJobName'" in sentence(capfd.readouterr().err)
    assert files_in(home / "jobs") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "nosuch.toml"], ["nosuch.toml", "No such file"]),
        (["run", "."], ["directory", "job.toml"]),
        (["run", "SPEC", "--engine", "podman"], ["'podman'", "docker", "sandbox"]),
        (["run", "SPEC", "--gpus", "many"], ["gpus", "'many'"]),
        (["run", "SPEC", "--stop-grace", "-1"], ["--stop-grace"]),
        (["run", "SPEC", "--bogus"], ["--bogus"]),
        (["run", "SPEC", "--set", "x"], ["'x'", "word=value"]),
        (["run", "SPEC", "--set", "=1"], ["word=value"]),
        (["run", "SPEC", "--set", "nosuch=1"], ["unknown key 'nosuch'"]),
        (["run", "SPEC", "--set", "name.x=1"], ["name.x", "no table"]),
        (["run", "SPEC", "--set", "a b=1"], ["'a b'"]),
        (["run", "SPEC", "--set", "instance_count=zero"], ["instance_count must be an integer"]),
        (["runn", "SPEC"], ["no command 'runn'", "did you mean run?"]),
        (["logs", "nosuch"], ["no job 'nosuch'"]),
        (["stop", "nosuch"], ["no job 'nosuch'"]),
        (["describe", "../../etc"], ["no job '../../etc'"]),
        (["metrics", ""], ["no job ''"]),
        (["logs"], ["JOB"]),
        (["gc", "--older-than", "soon"], ["'soon'", "7d"]),
    ],
    ids=" ".join,
)
def test_wrong_words(
    write_spec: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = str(write_spec("", engine="sandbox"))
    assert main([spec if word == "SPEC" else word for word in words]) == BAD_SPEC
    told = sentence(capfd.readouterr().err)
    for word in expected:
        assert word in told


def test_json_tells_errors_as_json(capfd: pytest.CaptureFixture[str], home: Path) -> None:
    del home
    assert main(["describe", "nosuch", "--json"]) == BAD_SPEC
    document = json.loads(capfd.readouterr().out)
    assert document["error"]["exit_code"] == BAD_SPEC
    assert "no job 'nosuch'" in document["error"]["message"]


def test_spot_without_checkpoint_is_warned_of(write_spec: Write) -> None:
    """# contract: K10"""
    spec = write_spec("", engine="sandbox", use_spot_instances=True, max_run=100, max_wait=100)
    warning = "spot training without checkpoint_s3_uri"
    done = cli("run", spec)
    assert done.returncode == COMPLETED, done.stdout
    assert re.search(f"^warning: {warning}.*starts from zero$", done.stderr, re.MULTILINE)
    planned = cli("plan", spec)
    assert planned.returncode == 0
    assert warning in " ".join(planned.stdout.split())


# ---------------------------------------------------------------------------- names


SAY = """
    import pathlib, time
    print("I am {who}", flush=True)
    pathlib.Path("/opt/ml/model/who").write_text("{who}")
    time.sleep({seconds})
    """


def test_a_name_is_used_once(write_spec: Write, home: Path) -> None:
    """# contract: G35"""
    first = cli("run", write_spec(SAY.format(who="first", seconds=0), engine="sandbox"), "--job-name", "one")
    assert first.returncode == COMPLETED, first.stdout
    before = files_in(home)
    second = cli(
        "run", write_spec(SAY.format(who="second", seconds=0), engine="sandbox"), "--job-name", "one"
    )
    assert second.returncode == BAD_SPEC
    told = sentence(second.stderr)
    assert "one exists already" in told
    assert "choose another --job-name" in told
    job = Job(Home(home), "one")
    assert job.record.status == "Completed"
    assert job.archive() == {"who": b"first"}
    assert [name for name in files_in(home) if name.startswith(("jobs", "s3"))] == [
        name for name in before if name.startswith(("jobs", "s3"))
    ]
    stopped = cli("stop", "one")
    assert stopped.returncode == BAD_SPEC
    assert "in status Completed" in sentence(stopped.stderr)


def test_two_at_once_with_one_name(write_spec: Write, home: Path) -> None:
    """One of them runs, and it runs its own code."""
    commands = {
        who: subprocess.Popen(
            [
                *(sys.executable, "-m", "harness", "run", "--job-name", "race"),
                str(write_spec(SAY.format(who=who, seconds=1), engine="sandbox")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who in ("ONE", "TWO")
    }
    ended = {who: (*process.communicate(timeout=60), process.returncode) for who, process in commands.items()}
    codes = {who: code for who, (_, _, code) in ended.items()}
    assert sorted(codes.values()) == [COMPLETED, BAD_SPEC], ended
    winner = min(codes, key=lambda who: codes[who])
    loser = max(codes, key=lambda who: codes[who])
    assert "race exists already" in sentence(ended[loser][1])
    assert f"I am {winner}" in ended[winner][0]
    assert Job(Home(home), "race").archive() == {"who": winner.encode()}
    assert files_in(home / "s3")[0].endswith("race/output/model.tar.gz")
    assert len(files_in(home / "s3")) == 2, "the loser's source is not kept"


def test_two_at_once_and_gc_meanwhile(write_spec: Write, home: Path) -> None:
    """Jobs side by side; `gc --all` takes neither."""
    commands = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "harness", "run", "--job-name", who),
                str(write_spec(SAY.format(who=who, seconds=2), engine="sandbox")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for who in ("a", "b")
    ]
    for who in ("a", "b"):
        until_said(home, who, b"I am")
    collected = cli("gc", "--all")
    assert collected.returncode == 0
    assert "removed 0 jobs" in collected.stdout
    for who, command in zip(("a", "b"), commands, strict=True):
        output, _ = command.communicate(timeout=60)
        assert command.returncode == COMPLETED, output
        assert Job(Home(home), who).archive() == {"who": who.encode()}


def test_the_longest_name(run: Submit) -> None:
    job = run("open('/opt/ml/model/x', 'w').close()", engine="sandbox", job_name="n" * 63)
    assert job.record.status == "Completed", job.record.failure_reason
    assert job.archive() == {"x": b""}


# -------------------------------------------------------------------- what is printed


def test_a_catastrophic_regex_holds_nothing_up(run: Submit, engine_name: str) -> None:
    """Its own values are given up; the log, the other metrics and the job go on."""
    lines = 20_000
    started = time.monotonic()
    job = run(
        f"""
        for n in range({lines}):
            print("a" * 40 + "!")
        print("loss = 0.5;", flush=True)
        """,
        engine=engine_name,
        metric_definitions=[
            {"Name": "catastrophe", "Regex": "(a+)+$"},
            {"Name": "loss", "Regex": "loss = (.*?);"},
        ],
    )
    assert time.monotonic() - started < 60
    assert job.record.status == "Completed", job.record.failure_reason
    # AWS's toolkit may break a line where one of its reads ends, but it drops nothing of it.
    assert job.log().count(b"!") == lines
    assert job.metrics()["loss"] == [0.5]
    assert any("catastrophe" in note and "too long" in note for note in job.record.result["notes"])


def test_a_hundred_megabytes_on_one_line_through_the_command_line(write_spec: Write, home: Path) -> None:
    spec = write_spec(
        r"""
        import sys
        sys.stdout.buffer.write(b"\xff\xfe\x00 raw \x1b[31m\n" + b"x" * (100 << 20) + b"\nend\n")
        """,
        engine="sandbox",
    )
    done = cli("run", spec, "--job-name", "wide", stdout=subprocess.DEVNULL)
    assert done.returncode == COMPLETED, done.stderr
    assert b"x" * (100 << 20) + b"\nend\n" in Job(Home(home), "wide").log()
    last = cli("logs", "wide", "--tail", "3")
    assert last.returncode == 0
    assert "end\n" in cli("logs", "wide").stdout


def test_output_that_nobody_reads(write_spec: Write, home: Path) -> None:
    """`harness run … | head -1`: the job goes on."""
    spec = write_spec(SAY.format(who="piped", seconds=1), engine="sandbox")
    command = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", str(spec), "--job-name", "piped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    assert command.stderr is not None
    assert command.stdout.readline() == "piped\n"
    command.stdout.close()
    assert command.wait(60) == 141
    assert command.stderr.read() == ""
    command.stderr.close()
    job = Job(Home(home), "piped")
    assert job.wait().status == "Completed"
    assert job.archive() == {"who": b"piped"}


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(write_spec: Write, home: Path, closed: tuple[int, ...]) -> None:
    spec = write_spec(SAY.format(who="closed", seconds=0), engine="sandbox")
    shell = " ".join(f"{number}>&-" for number in closed)
    command = f'exec "{sys.executable}" -m harness run "{spec}" --job-name closed {shell}'
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == COMPLETED, done
    assert done.stderr == b""
    assert Job(Home(home), "closed").archive() == {"who": b"closed"}


def test_a_full_stdout(write_spec: Write, home: Path) -> None:
    spec = write_spec(SAY.format(who="full", seconds=0), engine="sandbox")
    with Path("/dev/full").open("w") as full:
        done = cli("run", spec, "--job-name", "full", stdout=full)
        listed = cli("jobs", "--json", stdout=full)
        mute = cli("describe", "nosuch", "--json", stdout=full, stderr=full)
    for each in (done, listed):
        assert each.returncode == MACHINE_CANNOT
        assert "standard output can't be written (No space left on device)" in sentence(each.stderr)
    assert mute.returncode == BAD_SPEC
    job = Job(Home(home), "full")
    assert job.wait().status == "Completed"
    assert job.archive() == {"who": b"full"}


# ------------------------------------------------------------------------------- paths


@pytest.fixture
def odd_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory whose path would break `docker -v a:b` and mount options."""
    path = tmp_path / "a b, c:d\\e ü" / "home"
    path.parent.mkdir()
    monkeypatch.setenv("HARNESS_HOME", str(path))
    yield path
    settle(Home(path))


def test_odd_paths(odd_home: Path, engine_name: str) -> None:
    project = odd_home.parent / "my project"
    (project / "my code").mkdir(parents=True)
    (project / "da ta").mkdir()
    (project / "da ta/ä, b:c.txt").write_text("read me")
    (project / "my code/train.py").write_text(
        "import pathlib, os\n"
        "channel = pathlib.Path(os.environ['SM_CHANNEL_TRAINING'])\n"
        "print(f'found {[p.read_text() for p in channel.iterdir()]}', flush=True)\n"
        "(channel / 'new').write_text('mine')\n"
        "pathlib.Path('/opt/ml/model/ö ü:,.bin').write_text('x')\n"
    )
    (project / "my job.toml").write_text(
        f"""
        name = "odd"
        entry_point = "train.py"
        source_dir = "my code"
        role = "{ROLE}"
        image_uri = "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1"
        instance_type = "ml.m5.large"
        instance_count = 1
        checkpoint_s3_uri = "s3://my-bucket/a b/ü/"
        [inputs]
        training = "da ta"
        [hyperparameters]
        label = "two\\nlines"
        [local]
        engine = "{engine_name}"
        images = {{"*" = "harness-pytorch"}}
        """
    )
    done = cli("run", project / "my job.toml", "--job-name", "odd")
    assert done.returncode == COMPLETED, done.stdout
    assert "found ['read me']" in done.stdout
    assert Job(Home(odd_home), "odd").archive() == {"ö ü:,.bin": b"x"}
    assert [path.name for path in (project / "da ta").iterdir()] == ["ä, b:c.txt"]


def test_a_relative_home_and_a_linked_source(
    write_spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(SAY.format(who="linked", seconds=0), engine="sandbox")
    (spec.parent / "code").rename(tmp_path / "elsewhere")
    (spec.parent / "code").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("HARNESS_HOME", "state")
    done = cli("run", spec, "--job-name", "linked", cwd=tmp_path)
    assert done.returncode == COMPLETED, done.stdout
    assert Job(Home(tmp_path / "state"), "linked").archive() == {"who": b"linked"}
    settle(Home(tmp_path / "state"))


# --------------------------------------------------------------------------- the script


def test_an_empty_script(run: Submit) -> None:
    assert run("", engine="sandbox").record.status == "Completed"


@pytest.mark.parametrize(
    ("entry", "script", "code"),
    [
        ("train.sh", "#!/bin/sh\r\necho no\r\n", 127),
        ("train.sh", "#!/nowhere/sh\necho no\n", 127),
        ("train.sh", "#!/bin/sh\nexit 7\n", 7),
        ("train.py", "this is no python\n", 1),
    ],
)
def test_a_script_that_cannot_run(run: Submit, entry: str, script: str, code: int) -> None:
    """# contract: G13, D25"""
    record = run(script, engine="sandbox", entry_point=entry).record
    assert record.status == "Failed"
    assert f"ExitCode {code}\n" in (record.failure_reason or "")
    assert entry in (record.failure_reason or "")


def test_a_script_that_is_not_executable_is_made_so(run: Submit) -> None:
    """# contract: D25"""
    job = run("#!/bin/sh\necho ran > /opt/ml/model/x\n", engine="sandbox", entry_point="train.sh")
    assert job.archive() == {"x": b"ran\n"}, job.record.failure_reason


def test_requirements_that_cannot_be_met(run: Submit) -> None:
    """# contract: D39"""
    started = time.monotonic()
    job = run(
        "open('/opt/ml/model/ran', 'w').close()",
        engine="sandbox",
        files={"requirements.txt": "no-such-package-of-anyone==9"},
        environment={"PIP_NO_INDEX": "1"},
    )
    record = job.record
    assert record.status == "Failed"
    assert (record.failure_reason or "").startswith("AlgorithmError: InstallRequirementsError:\nExitCode 1\n")
    assert b"no-such-package-of-anyone" in job.log()
    assert job.archive() is None
    assert time.monotonic() - started < 30


LOCKED = """
import os, socket
os.symlink("/etc/shadow", "/opt/ml/model/shadow")
os.symlink("/", "/opt/ml/model/root")
os.symlink("kept", "/opt/ml/model/link")
os.mkfifo("/opt/ml/model/fifo")
socket.socket(socket.AF_UNIX).bind("/opt/ml/model/socket")
open("/opt/ml/model/kept", "w").write("x")
open(b"/opt/ml/model/\\xff\\n\\x1b[31m", "w").write("x")
"""


def test_what_is_no_file_in_the_model(write_spec: Write, home: Path, engine_name: str) -> None:
    """# contract: F26"""
    done = cli("run", write_spec(LOCKED, engine=engine_name), "--job-name", "odd")
    assert done.returncode == COMPLETED, done.stdout
    for name in ("shadow", "root", "fifo", "socket"):
        assert f"algo-1:{name}" in done.stdout
    assert "\x1b" not in done.stdout
    with tarfile.open(Job(Home(home), "odd").record.result["artifacts"]["model"]["path"]) as tar:
        names = {member.name.removeprefix("./").encode("utf-8", "surrogateescape") for member in tar}
    assert names - {b".", b""} == {b"kept", b"link", b"\xff\n\x1b[31m"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("os.rmdir('/opt/ml/model'); os.symlink('/etc', '/opt/ml/model')", "no directory any more"),
        (
            "os.chdir('/opt/ml/model')\nfor n in range(1500): os.mkdir('deep'); os.chdir('deep')",
            "nested more than 250 deep",
        ),
    ],
)
def test_a_model_that_cannot_be_packed(run: Submit, script: str, reason: str) -> None:
    job = run(f"import os\n{script}", engine="sandbox")
    assert (job.record.failure_reason or "").startswith("ClientError: Artifact upload failed: ")
    assert reason in (job.record.failure_reason or "")
    job.until(lambda: not owned(job.home, job.name))
    collected = cli("gc", "--all")
    assert "removed 1 job" in collected.stdout, collected
    assert files_in(job.home.jobs) == []


@pytest.mark.parametrize(
    ("makes", "reason"),
    [
        ("os.symlink('/etc/shadow', path)", ""),
        ("os.mkfifo(path)", ""),
        ("os.mkdir(path)", ""),
        ("open(path, 'wb').truncate(10 << 30)", "\0" * 100),
        ("open(path, 'wb').write(b'\\xff\\x1b[31mred\\n' * 1000)", "\ufffd\x1b[31mred\n"),
    ],
)
def test_a_failure_file_that_is_none(run: Submit, makes: str, reason: str) -> None:
    """# contract: G17, G19"""
    job = run(
        f"import os\npath = '/opt/ml/output/failure'\n{makes}\nos._exit(3)",
        engine="sandbox",
        container_entry_point=["python3", "/opt/ml/code/train.py"],
    )
    told = job.record.failure_reason or ""
    assert told.startswith(f"AlgorithmError: {reason}")
    assert len(told) <= 1024
    assert reason or told == "AlgorithmError: , exit code: 3"


def test_what_a_script_says_does_not_command_the_terminal(write_spec: Write) -> None:
    spec = write_spec(
        """
        import sys
        print("\\x1b]0;title\\x07 \\x9b31m", flush=True)
        open("/opt/ml/output/failure", "w").write("\\x1b[2J gone")
        sys.exit(1)
        """,
        engine="sandbox",
        container_entry_point=["python3", "/opt/ml/code/train.py"],
    )
    done = cli("run", spec)
    assert "#033]0;title#007 #23331m" in done.stdout
    assert "#033[2J gone" in done.stdout
    assert not set("\x1b\x07\x9b") & set(done.stdout)


def test_a_script_that_closes_its_streams(run: Submit, engine_name: str) -> None:
    job = run(
        """
        import os, time
        print("said", flush=True)
        os.close(1), os.close(2)
        time.sleep(1)
        open("/opt/ml/model/late", "w").close()
        """,
        engine=engine_name,
    )
    assert job.record.status == "Completed", job.record.failure_reason
    assert b"said" in job.log()
    assert job.archive() == {"late": b""}


FILL = "x = []\nwhile True: x.append(bytearray(10 << 20))"


def test_killed_for_memory(run: Submit, engine_name: str) -> None:
    """The script's child of the toolkit, and process 1 itself (contract: G13)."""
    limits = {"memory": "600m"}
    script = run(FILL, engine=engine_name, local=limits).record
    assert script.status == "Failed"
    assert "ExitCode -9" in (script.failure_reason or "")
    assert "needed more memory than the host has" in (script.failure_reason or "")
    one = run(
        FILL, engine=engine_name, container_entry_point=["python3", "/opt/ml/code/train.py"], local=limits
    ).record
    assert one.status == "Failed"
    assert ", exit code: 137" in (one.failure_reason or "")
    assert "needed more memory than the host has" in (one.failure_reason or "")
    assert [(host.exit_code, host.oom_killed) for host in one.hosts] == [(137, True)]


def test_a_process_1_that_dies_by_a_signal(run: Submit, engine_name: str) -> None:
    dies = ["python3", "-c", "import ctypes; ctypes.string_at(0)"]
    record = run("", engine=engine_name, container_entry_point=dies).record
    assert (record.status, record.failure_reason) == ("Failed", "AlgorithmError: , exit code: 139")


def test_a_script_that_ignores_sigterm_is_killed(submit: Submit, engine_name: str) -> None:
    """# contract: G9"""
    job = submit(
        "",
        engine=engine_name,
        container_entry_point=[
            "python3",
            "-uc",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)",
        ],
        local={"stop_grace": 1},
    )
    job.until_log(b"up")
    started = time.monotonic()
    stopped = cli("stop", job.name, "--wait")
    assert (stopped.returncode, stopped.stdout) == (0, f"{job.name} is Stopped\n"), stopped.stderr
    assert 1 <= time.monotonic() - started < 30
    assert job.record.result["stop"] == {"cause": "user", "killed": True}


# ------------------------------------------------------------------- archives and objects


def tar_of(path: Path, *members: tuple[str, bytes, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)


TRAIN = ("train.py", tarfile.REGTYPE, b"open('/opt/ml/model/ran', 'w').close()")
SOURCES: dict[str, tuple[list[tuple[str, bytes, Any]], str]] = {
    "absolute path": (
        [("/tmp/harness-evil", tarfile.REGTYPE, b"x")],
        "'/tmp/harness-evil' has an absolute path",
    ),
    "climbs": ([("../../harness-evil", tarfile.REGTYPE, b"x")], "has '..' in its path"),
    "writes through a link": (
        [("a", tarfile.SYMTYPE, "/tmp"), ("a/harness-evil", tarfile.REGTYPE, b"x")],
        "'a' is a link",
    ),
    "link that climbs": ([("a", tarfile.SYMTYPE, "../../..")], "'a' is a link that leaves the archive"),
    "absolute link": ([("a", tarfile.SYMTYPE, "/etc/shadow")], "'a' is a link that leaves the archive"),
    "hard link out": ([("a", tarfile.LNKTYPE, "/etc/passwd")], "'a' is a hard link to '/etc/passwd'"),
    "device": ([("a", tarfile.CHRTYPE, "")], "'a' is a device or FIFO"),
    "FIFO": ([("a", tarfile.FIFOTYPE, "")], "'a' is a device or FIFO"),
}


def request_with_source(path: Path, uri: str, name: str) -> Path:
    request = {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1",
            "TrainingInputMode": "File",
        },
        "HyperParameters": {
            "sagemaker_program": json.dumps("train.py"),
            "sagemaker_submit_directory": json.dumps(uri),
        },
        "OutputDataConfig": {"S3OutputPath": "s3://my-bucket/out/"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }
    path.write_text(json.dumps(request))
    return path


@pytest.mark.parametrize(("members", "words"), SOURCES.values(), ids=SOURCES.keys())
def test_a_source_archive_that_would_escape(
    tmp_path: Path, home: Path, members: list[tuple[str, bytes, Any]], words: str
) -> None:
    tar_of(home / "s3/evil/source.tar.gz", TRAIN, *members)
    spec = request_with_source(tmp_path / "request.json", "s3://evil/source.tar.gz", "evil")
    done = cli("run", spec, "--engine", "sandbox", "--offline", cwd=tmp_path)
    assert done.returncode == FAILED, done.stdout
    record = Job(Home(home), "evil").record
    assert (record.failure_reason or "").startswith(
        "ClientError: the source archive s3://evil/source.tar.gz was not unpacked: its member "
    )
    assert words in (record.failure_reason or "")
    assert not list(tmp_path.rglob("harness-evil"))
    assert not Path("/tmp/harness-evil").exists()
    assert [item.status for item in record.transitions][-2:] == ["Downloading", "Failed"]


@pytest.mark.parametrize("content", [b"\x1f\x8b damaged", b"no archive at all", b""])
def test_a_source_that_is_no_archive(tmp_path: Path, home: Path, content: bytes) -> None:
    (home / "s3/evil").mkdir(parents=True)
    (home / "s3/evil/source.tar.gz").write_bytes(content)
    spec = request_with_source(tmp_path / "request.json", "s3://evil/source.tar.gz", "evil")
    assert cli("run", spec, "--engine", "sandbox", "--offline").returncode == FAILED
    reason = Job(Home(home), "evil").record.failure_reason or ""
    assert reason.startswith(
        "ClientError: the source archive s3://evil/source.tar.gz is damaged or no tar.gz"
    )
    assert "\n" not in reason


def test_links_inside_a_source_archive_are_fine(tmp_path: Path, home: Path) -> None:
    tar_of(home / "s3/good/source.tar.gz", TRAIN, ("link", tarfile.SYMTYPE, "train.py"))
    spec = request_with_source(tmp_path / "request.json", "s3://good/source.tar.gz", "good")
    done = cli("run", spec, "--engine", "sandbox", "--offline")
    assert done.returncode == COMPLETED, done.stdout
    assert Job(Home(home), "good").archive() == {"ran": b""}


@pytest.mark.parametrize("key", ["data/../../../escape", "data/./x", "data//x", "data/" + "n" * 256])
def test_an_object_key_that_is_no_path_in_the_local_store(run: Submit, home: Path, key: str) -> None:
    """S3 takes such keys; no file can have such a name (contract: E6)."""
    store = ObjectStore(home / "s3")
    store.put_bytes("s3://my-bucket/data/good", b"x")
    store.put_bytes(f"s3://my-bucket/{key}", b"evil")
    record = run(
        "", engine="sandbox", inputs={"training": "s3://my-bucket/data/"}, local={"offline": True}
    ).record
    assert record.status == "Failed"
    reason = record.failure_reason or ""
    assert reason.startswith(f"ClientError: Data download failed: the object 's3://my-bucket/{key}'")
    assert "rename the object" in reason
    assert not list(home.rglob("escape"))


def test_an_object_key_that_climbs_in_amazon_s3(
    run: Submit,
    home: Path,
    bucket: Bucket,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.objects = {"data/good": b"x", "data/../../../../escape": b"evil"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bucket.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    record = run("", engine="sandbox", inputs={"training": "s3://real/data/"}).record
    assert record.status == "Failed"
    reason = record.failure_reason or ""
    assert "'s3://real/data/../../../../escape' can't be a file below /opt/ml/input/data/training" in reason
    assert bucket.gets == [], "nothing is fetched of a channel that can't be whole"
    assert not list(home.rglob("escape"))


# -------------------------------------------------------------------------- an ordinary user


Ordinary = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ordinary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ordinary]:
    """`harness` in a process of a user who may read only what its mode says."""
    place = tmp_path
    if os.geteuid() == 0:
        # pytest's own directories are root's alone.
        place = Path("/var/lib") / f"harness-ordinary-{os.getpid()}"
        place.mkdir(mode=0o755)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "TMPDIR": str(place),
        "HARNESS_HOME": str(place / "home"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    (place / "home").mkdir()
    monkeypatch.setenv("HARNESS_HOME", str(place / "home"))
    options: dict[str, Any] = {}
    python = sys.executable
    try:
        if os.geteuid() == 0:
            os.chown(place / "home", USER, USER)
            python = interpreter_for_all(environment)
            options = {"user": USER, "group": USER, "extra_groups": []}

        def call(*words: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [python, "-m", "harness", *map(str, words)],
                env=environment,
                cwd=place,
                text=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=60,
                check=False,
                **options,
            )

        yield call
    finally:
        if os.geteuid() == 0:
            shutil.rmtree(place)


@pytest.fixture
def project(ordinary: Ordinary, write_spec: Write, home: Path) -> Path:
    """A project with data, owned by the ordinary user, in a place that it can reach."""
    del ordinary
    place = Path(os.environ["HARNESS_HOME"]).parent / "project"
    written = write_spec("", engine="sandbox", inputs={"training": "data"})
    shutil.copytree(written.parent, place)
    (place / "data/sub").mkdir(parents=True)
    (place / "data/file").write_text("x")
    (place / "data/sub/file").write_text("x")
    del home
    if os.geteuid() == 0:
        for path in (place, *place.rglob("*")):
            os.chown(path, USER, USER)
    return place


@pytest.mark.parametrize(
    ("locked", "code", "words"),
    [
        ("data", BAD_SPEC, ["channel training", "data", "Permission denied"]),
        (
            "data/file",
            FAILED,
            ["ClientError: Data download failed: channel training", "/data/file", "denied"],
        ),
        ("data/sub", FAILED, ["ClientError: Data download failed: channel training", "/data/sub", "denied"]),
        ("code", BAD_SPEC, ["source_dir code", "Permission denied"]),
        ("code/train.py", BAD_SPEC, ["can't pack the source", "code/train.py", "Permission denied"]),
        ("job.toml", BAD_SPEC, ["job.toml", "not readable"]),
    ],
)
def test_what_a_user_may_not_read(
    ordinary: Ordinary, project: Path, locked: str, code: int, words: list[str]
) -> None:
    path = project / locked
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        done = ordinary("run", project / "job.toml")
    finally:
        path.chmod(mode)
    assert done.returncode == code, done
    told = done.stdout if code == FAILED else sentence(done.stderr)
    for word in words:
        assert word in told


def test_what_a_script_locked_is_packed_and_removed(ordinary: Ordinary, project: Path) -> None:
    """In the cloud root packs it (contract: F1); here it is the user's, whatever its mode."""
    (project / "code/train.py").write_text(
        "import os\n"
        "for place in ('/opt/ml/model', '/opt/ml/code', '/tmp'):\n"
        "    os.makedirs(f'{place}/locked/in')\n"
        "    open(f'{place}/locked/in/file', 'w').write('x')\n"
        "    for name in ('in/file', 'in', ''):\n"
        "        os.chmod(f'{place}/locked/{name}', 0)\n"
        "raise SystemExit(1)\n"
    )
    done = ordinary("run", project / "job.toml", "--job-name", "locked")
    assert done.returncode == FAILED, done
    (archive,) = (project.parent / "home/s3").rglob("model.tar.gz")
    with tarfile.open(archive) as tar:
        assert "locked/in/file" in {name.removeprefix("./") for name in tar.getnames()}
    collected = ordinary("gc", "--all")
    assert collected.returncode == 0, collected
    assert list((project.parent / "home/jobs").iterdir()) == []


def test_a_home_that_is_partly_locked(ordinary: Ordinary, project: Path) -> None:
    assert ordinary("run", project / "job.toml", "--job-name", "first").returncode == COMPLETED
    place = project.parent / "home"
    for locked, words in {
        "": ["run", project / "job.toml"],
        "jobs": ["run", project / "job.toml"],
        "harness.db": ["run", project / "job.toml"],
        "jobs/first": ["logs", "first"],
        "jobs/first/logs/1": ["logs", "-f", "first"],
    }.items():
        path = place / locked
        mode = path.stat().st_mode
        path.chmod(0o555 if locked in ("", "jobs") else 0o444)
        try:
            done = ordinary(*words)
        finally:
            path.chmod(mode)
        assert done.returncode == MACHINE_CANNOT, (locked, done)
        assert str(place) in sentence(done.stderr)
    assert ordinary("logs", "first").returncode == 0
    jobs = json.loads(ordinary("jobs", "--json").stdout)["TrainingJobSummaries"]
    assert [job["TrainingJobName"] for job in jobs] == ["first"]


def test_docker_without_permission(ordinary: Ordinary, project: Path) -> None:
    if os.access("/var/run/docker.sock", os.F_OK) and os.geteuid() != 0:
        pytest.skip("this user may use Docker")
    done = ordinary("run", project / "job.toml", "--engine", "docker")
    assert done.returncode == MACHINE_CANNOT, done
    assert "--engine sandbox" in sentence(done.stderr)


# --------------------------------------------------------------- disks: read-only, full, damaged


COMMANDS = [
    *(["jobs"], ["jobs", "--json"], ["describe", "x"], ["logs", "x"], ["logs", "-f", "x"], ["metrics", "x"]),
    *(["stop", "x"], ["gc"], ["gc", "--dry-run"], ["run", "SPEC"], ["run", "-d", "SPEC"]),
]


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk of its own size")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield
        if os.access(place, os.W_OK):
            settle(Home(place))
    finally:
        # A supervisor has its log there until it is gone, a moment after it let go of its job.
        deadline = time.monotonic() + 5
        while subprocess.run(["umount", place], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{place} is in use"
            time.sleep(0.05)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_home_on_a_read_only_disk(
    home: Path, write_spec: Write, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    spec = str(write_spec("", engine="sandbox"))
    with mounted(home, "300m"):
        Store(Home(home)).close()
        subprocess.run(["mount", "-o", "remount,ro", home], check=True)
        assert main([spec if word == "SPEC" else word for word in words]) == MACHINE_CANNOT
    told = sentence(capfd.readouterr().err)
    assert str(home) in told
    assert "Read-only file system" in told
    assert "set HARNESS_HOME to a directory that you can write" in told


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be looked at" * 100, None])
def test_a_home_that_is_damaged(home: Path, capfd: pytest.CaptureFixture[str], content: bytes | None) -> None:
    if content is None:
        home.rmdir()
        home.write_text("a file")
    else:
        (home / "harness.db").write_bytes(content)
    try:
        for words in (["jobs"], ["describe", "x"], ["gc"]):
            assert main(words) == MACHINE_CANNOT
            told = sentence(capfd.readouterr().err)
            assert str(home) in told
            assert "HARNESS_HOME" in told
    finally:
        if content is None:
            home.unlink()
        else:
            assert (home / "harness.db").read_bytes() == content, "a file that isn't ours was changed"
            (home / "harness.db").unlink()


def test_a_disk_that_is_full_before_anything_starts(home: Path, write_spec: Write) -> None:
    spec = write_spec("", engine="sandbox")
    with mounted(home, "20m"):
        done = cli("run", spec)
        assert done.returncode == MACHINE_CANNOT
        assert f"free at {home}" in sentence(done.stderr)


def test_a_disk_too_small_for_the_source(home: Path, write_spec: Write) -> None:
    spec = write_spec("", engine="sandbox")
    (spec.parent / "code/big").write_bytes(os.urandom(130 << 20))
    with mounted(home, "120m"):
        done = cli("run", spec)
        assert done.returncode == MACHINE_CANNOT
        told = sentence(done.stderr)
        assert "no space left to pack the source" in told
        assert str(home) in told
        assert files_in(home / "s3") == files_in(home / "jobs") == []


def test_a_disk_too_small_for_the_channel(
    home: Path,
    submit: Submit,
    bucket: Bucket,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.objects = {"data/a": os.urandom(90 << 20), "data/b": os.urandom(90 << 20)}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bucket.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with mounted(home, "120m"):
        job = submit("", engine="sandbox", inputs={"training": "s3://real/data/"})
        record = job.wait()
        assert record.status == "Failed"
        reason = record.failure_reason or ""
        assert reason.startswith("ClientError: Data download failed:Insufficient disk space"), reason
        assert shutil.disk_usage(home).free > 100 << 20, "what was fetched in vain is removed"


def test_a_disk_that_is_full_when_the_model_is_packed(
    home: Path, write_spec: Write, engine_name: str
) -> None:
    """# contract: F22"""
    spec = write_spec(
        """
        import os
        for n in range(2):
            open(f"/opt/ml/model/part{n}", "wb").write(os.urandom(80 << 20))
        print("trained", flush=True)
        """,
        engine=engine_name,
    )
    with mounted(home, "260m"):
        done = cli("run", spec, "--job-name", "packed")
        assert done.returncode == FAILED, done.stdout
        job = Job(Home(home), "packed")
        reason = job.record.failure_reason or ""
        assert reason.startswith("ClientError: Artifact upload failed:Insufficient disk space")
        model = home / "jobs/packed/hosts/algo-1/ml/model"
        assert {path.name: path.stat().st_size for path in model.iterdir()} == {
            "part0": 80 << 20,
            "part1": 80 << 20,
        }
        assert f"the outputs were kept in {home}/jobs/packed/hosts" in done.stdout
        assert not [name for name in files_in(home / "s3") if "output" in name], "no half an archive"
        assert b"trained" in job.log()
        settle(Home(home))


def test_a_script_that_fills_the_disk(home: Path, write_spec: Write, engine_name: str) -> None:
    """The kernel tells the script, the job's end tells the user; what the script says then is in the log."""
    spec = write_spec(
        """
        import os, time
        print("begin", flush=True)
        block = os.urandom(1 << 20)
        with open("/opt/ml/model/part", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(block)
            except OSError as error:
                print(f"told: {error}", flush=True)
        time.sleep(3)
        for n in range(1000):
            print(f"line {n} {n / 1000};", flush=True)
        raise SystemExit("the disk is full, I say")
        """,
        engine=engine_name,
        metric_definitions=[{"Name": "part", "Regex": "line .* (.*?);"}],
    )
    with mounted(home, "150m"):
        done = cli("run", spec, "--job-name", "filled")
        assert done.returncode == FAILED, done.stdout
        job = Job(Home(home), "filled")
        log = job.log()
        assert b"told: [Errno 28] No space left on device\n" in log
        assert b"line 999 0.999;\n" in log
        assert b"the disk is full, I say" in log
        assert "Insufficient disk space" in done.stdout, "why there is no archive"
        assert (home / "jobs/filled/hosts/algo-1/ml/model/part").stat().st_size > 50 << 20
        if engine_name == "sandbox":  # AWS's toolkit exits with 0 when it can't write the failure file
            assert (job.record.failure_reason or "").startswith("AlgorithmError: ")
            assert [host.exit_code for host in job.record.hosts] == [1]
        assert cli("jobs").returncode == 0
        settle(Home(home))
        assert "removed 1 job" in cli("gc", "--all").stdout
        assert shutil.disk_usage(home).free > 140 << 20


# ----------------------------------------------------------------------- Docker goes away


CABLE = """
import contextlib, os, socket, sys, threading
path, docker = sys.argv[1:]
ends = set()
def pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
def serve(listener):
    while True:
        try:
            here, _ = listener.accept()
        except OSError:
            return
        there = socket.socket(socket.AF_UNIX)
        there.connect(docker)
        ends.update((here, there))
        for pair in ((here, there), (there, here)):
            threading.Thread(target=pump, args=pair, daemon=True).start()
for word in sys.stdin:
    if word == "mend\\n":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
    else:
        os.unlink(path)
        for each in (listener, *ends):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        ends.clear()
    print(word, end="", flush=True)
"""
SOCKET = "/var/run/docker.sock"


class Cable:
    """A socket that leads to the Docker Engine until it is cut.

    It is a process of its own: a test's process with threads couldn't be forked into a supervisor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", CABLE, str(path), SOCKET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.mend()

    def mend(self) -> None:
        self._say("mend")

    def cut(self) -> None:
        self._say("cut")

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{word}\n"

    def close(self) -> None:
        self.process.communicate()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def cable(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cable]:
    """Docker as this test's jobs reach it."""
    if not Path(SOCKET).exists():
        pytest.skip(f"the Docker Engine is not at {SOCKET}")
    # A socket's path may have 107 bytes: pytest's own directories are too deep.
    made = Cable(Path(f"/tmp/harness-cable-{os.getpid()}.sock"))
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{made.path}")
        yield made
    made.close()
    settle(Home(home))


LINES = """
    import time
    for n in range({lines}):
        print(f"line {{n}}", flush=True)
        time.sleep(0.1)
    open("/opt/ml/model/done", "w").close()
    """


@pytest.mark.docker
def test_docker_goes_away_and_comes_back(submit: Submit, cable: Cable) -> None:
    """The job waits for it, and no line is lost or doubled."""
    job = submit(LINES.format(lines=60), engine="docker")
    job.until_log(b"line 10\n")
    cable.cut()
    time.sleep(2)
    assert job.record.status == "InProgress"
    cable.mend()
    record = job.wait()
    assert record.status == "Completed", record.failure_reason
    lines = [line for line in job.log().splitlines() if line.startswith(b"line ")]
    assert lines == [f"line {n}".encode() for n in range(60)]
    assert job.archive() == {"done": b""}


@pytest.mark.docker
def test_docker_goes_away_for_good(
    submit: Submit, cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends as what it is, a failure of the platform; what it left in Docker goes when Docker is back."""
    from harness.engines.docker import _daemon

    monkeypatch.setattr(_daemon, "RETURN_SECONDS", 1.0)
    job = submit(LINES.format(lines=600), engine="docker")
    job.until_log(b"line 10\n")
    cable.cut()
    started = time.monotonic()
    # Docker is gone for this command, too.
    done = cli("logs", "-f", job.name)
    assert done.returncode == 0
    assert time.monotonic() - started < 60
    record = job.record
    assert record.status == "Failed"
    assert re.match("InternalServerError: host algo-1 is gone: .*Docker", record.failure_reason or "")
    assert b"line 10\n" in job.log()
    refused = cli("run", tmp_path / "project0/job.toml")
    assert refused.returncode == MACHINE_CANNOT
    assert "DOCKER_HOST" in sentence(refused.stderr)
    cable.mend()
    assert cli("gc").returncode == 0
