"""`harness rerun`: the same job once more, truly the same unless it says otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness import debugging
from harness.cli import main
from harness.errors import UsageError
from harness.home import Home
from harness.store import JobRecord, Store
from harness.targets import local
from tests.jobs.conftest import Job, Submit

CHECKPOINTS = "s3://my-bucket/checkpoints/mnist/"
COUNTS = """
    import os, pathlib, sys
    place = pathlib.Path("/opt/ml/checkpoints")
    found = sorted(path.name for path in place.glob("*")) if place.exists() else []
    sys.stdout.write(f"found {found} args {sys.argv[1:]} who {os.environ.get('WHO')}\\n")
    if place.exists():
        (place / f"epoch-{len(found)}").write_text("x")
    raise SystemExit(3)
"""


def newest(home: Home) -> JobRecord:
    with Store(home) as store:
        return store.job(store.jobs(limit=1)[0].name)


def again(job: Job, *words: str) -> Job:
    """`harness rerun`, as on the command line; the new job."""
    code = main(["rerun", job.name, *words])
    record = newest(job.home)
    assert code == {"Completed": 0, "Failed": 1}[record.status]
    return Job(job.home, record.name)


def said(job: Job) -> str:
    return next(line for line in job.log().decode().splitlines() if line.startswith("found"))


def test_the_same_code_though_the_directory_changed(
    run: Submit, engine_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """# contract: C6"""
    job = run(
        COUNTS, engine=engine_name, name="mnist", hyperparameters={"lr": 0.1}, environment={"WHO": "me"}
    )
    source = Path(job.record.spec["uploads"][0]["path"])
    (source / "train.py").write_text("print('found other code')\n")
    capsys.readouterr()
    twin = again(job)
    told = f"it runs the code as {job.name} did, and {source / 'train.py'} has changed since: --code current"
    assert told in capsys.readouterr().err
    assert twin.name.startswith("mnist-")
    assert twin.name != job.name
    assert said(twin) == said(job) == "found [] args ['--lr', '0.1'] who me"
    ours, theirs = dict(twin.record.request), dict(job.record.request)
    for request in (ours, theirs):
        request.pop("TrainingJobName")
        request["HyperParameters"] = {
            key: value for key, value in request["HyperParameters"].items() if key != "sagemaker_job_name"
        }
    assert ours == theirs, "it is the same request but for the job's name"
    assert json.loads(twin.record.request["HyperParameters"]["sagemaker_job_name"]) == twin.name
    assert twin.record.spec["rerun_of"] == job.name


def test_the_code_as_it_is_now(run: Submit) -> None:
    job = run(COUNTS, engine="sandbox", hyperparameters={"lr": 0.1})
    twin = again(job)
    source = Path(job.record.spec["uploads"][0]["path"])
    assert not debugging.rerun(job.home, job.name).warnings
    (source / "train.py").write_text("print('found other code')\n")
    assert "has changed since" in debugging.rerun(job.home, twin.name).warnings[0]
    assert not debugging.rerun(job.home, twin.name, code="current").warnings
    today = again(twin, "--code", "current")
    assert said(today) == "found other code"
    assert today.record.status == "Completed"
    assert again(today, "--set", "hyperparameters.lr=0.5").record.request["HyperParameters"]["lr"] == "0.5"


def test_words_that_can_be_set(run: Submit) -> None:
    job = run(COUNTS, engine="sandbox", hyperparameters={"lr": 0.1, "name": "a"}, environment={"WHO": "me"})
    twin = again(
        job,
        *("--set", "lr=0.5"),
        *("--set", "hyperparameters.depth=3"),
        *("--set", "hyperparameters.name=b"),
        *("--set", "environment.WHO=you"),
        *("--set", "max_run=60"),
        *("--set", "StoppingCondition.MaxRuntimeInSeconds=61"),
    )
    assert said(twin) == "found [] args ['--depth', '3', '--lr', '0.5', '--name', 'b'] who you"
    assert twin.record.request["StoppingCondition"]["MaxRuntimeInSeconds"] == 61
    assert main(["rerun", job.name, "--set", "entry_point=other.py"]) == 2
    assert main(["rerun", job.name, "--set", "max_run=0"]) == 2


def test_checkpoints(run: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    """# contract: F12, F19"""
    job = run(COUNTS, engine="sandbox", checkpoint_s3_uri=CHECKPOINTS)
    assert said(job).startswith("found []")
    fresh = again(job)
    assert said(fresh).startswith("found []"), "nothing is restored silently"
    prefix = f"s3://my-bucket/checkpoints/{fresh.name}/mnist/"
    assert fresh.record.request["CheckpointConfig"]["S3Uri"] == prefix
    assert f"starts fresh, with checkpoints under {prefix}" in capsys.readouterr().err
    once_more = again(fresh).record.request["CheckpointConfig"]["S3Uri"]
    assert once_more.count("/") == prefix.count("/"), "prefixes don't grow"
    capsys.readouterr()
    resumed = again(job, "--from-checkpoint")
    assert said(resumed).startswith("found ['epoch-0']")
    assert resumed.record.request["CheckpointConfig"] == job.record.request["CheckpointConfig"]
    assert "it resumes: 1 object of" in capsys.readouterr().err


def test_nothing_to_resume_from(run: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    without = run(COUNTS, engine="sandbox")
    assert main(["rerun", without.name, "--from-checkpoint"]) == 2
    assert "has no CheckpointConfig" in capsys.readouterr().err
    empty = run("raise SystemExit(3)", engine="sandbox", checkpoint_s3_uri=CHECKPOINTS)
    assert main(["rerun", empty.name, "--from-checkpoint"]) == 2
    assert "left no checkpoint under" in capsys.readouterr().err
    assert again(empty).record.request["CheckpointConfig"]["S3Uri"] == CHECKPOINTS, (
        "there is nothing to avoid"
    )


def test_what_is_gone_is_told(run: Submit, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("x")
    job = run(COUNTS, engine="sandbox", inputs={"train": str(data)})
    record = job.record
    archive = job.home.s3 / json.loads(
        record.request["HyperParameters"]["sagemaker_submit_directory"]
    ).removeprefix("s3://")
    archive.rename(archive.with_suffix(".away"))
    with pytest.raises(UsageError, match="is gone from the local object store"):
        debugging.rerun(job.home, job.name)
    assert debugging.rerun(job.home, job.name, code="current").uploads[0].path.is_dir()
    archive.with_suffix(".away").rename(archive)
    shutil.rmtree(data)
    with pytest.raises(UsageError, match=r"its channel train was .*, which is gone"):
        debugging.rerun(job.home, job.name)
    data.mkdir()
    shutil.rmtree(next(each["path"] for each in record.spec["uploads"] if each["kind"] == "source"))
    with pytest.raises(UsageError, match="is gone: leave out --code current"):
        debugging.rerun(job.home, job.name, code="current")
    with pytest.raises(UsageError, match="there is no job"):
        debugging.rerun(job.home, "nothing")


def test_a_raw_request(run: Submit, home: Path) -> None:
    """A spec that is AWS's request itself runs again as well, though nobody knows where its code came from."""
    job = run(COUNTS, engine="sandbox", name="one")
    raw = home.parent / "request.json"
    request = job.record.request | {"TrainingJobName": "raw-1"}
    raw.write_text(json.dumps(request))
    from harness.spec import load

    place = Home(home)
    first = Job(place, local.submit(load(raw, local={"engine": "sandbox"}), home=place).name)
    first.wait()
    twin = again(first)
    assert twin.name.startswith("raw-1-")
    assert said(twin) == said(job)


def test_network_isolation_brings_the_code_as_a_channel(run: Submit) -> None:
    job = run(COUNTS, engine="sandbox", enable_network_isolation=True)
    source = Path(next(each["path"] for each in job.record.spec["uploads"] if each["kind"] == "source"))
    twin = again(job)
    assert said(twin) == said(job)
    (source / "train.py").write_text("print('found other code')\n")
    today = again(twin, "--code", "current")
    assert said(today) == "found other code"


def test_options_and_json(run: Submit, capsys: pytest.CaptureFixture[str], unique: str) -> None:
    job = run("print('found')", engine="sandbox")
    capsys.readouterr()
    assert main(["rerun", job.name, "--job-name", unique, "--json", "--cold"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["TrainingJobName"] == unique
    assert main(["rerun", job.name, "--job-name", unique]) == 2, "names can't be used again"
    spec = debugging.rerun(job.home, job.name, engine="docker", gpus="none", warm=True)
    assert (spec.local.engine, spec.local.gpus, spec.local.warm, spec.local.debug) == (
        "docker",
        "none",
        True,
        None,
    )
    assert spec.local.images == {"*": "harness-pytorch"}
