"""One spec, both engines: what the script sees must be equal.

In the docker engine the image's `train` is AWS's own toolkit, in the sandbox it is ours, so this is also
the proof that ours does what AWS's does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import Job, Submit

pytestmark = pytest.mark.docker

LOOK = r"""
    import json, os, stat, sys
    from pathlib import Path

    names = ("MASTER_ADDR", "MASTER_PORT", "CURRENT_HOST", "HOSTNAME", "TRAINING_JOB_ARN", "AWS_REGION",
             "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "MY_OWN")
    prefixes = ("SM_", "SAGEMAKER_", "NCCL_", "NVIDIA_")
    ml = Path("/opt/ml")
    seen = {
        "environment": {k: v for k, v in os.environ.items() if k.startswith(prefixes) or k in names},
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "stdin_is_a_tty": sys.stdin.isatty(),
        "uid": os.getuid(),
        "first_path": os.environ["PYTHONPATH"].split(":")[0],
        "config": {p.name: p.read_text() for p in (ml / "input/config").iterdir()},
        "modes": {
            str(p): [stat.filemode(p.lstat().st_mode), p.lstat().st_uid]
            for p in sorted(ml.rglob("*")) if "__pycache__" not in p.parts
        },
        "data": {
            # The archive holds the times of the project's files, which are written anew for each job.
            p.name: "" if p.name == "sourcedir.tar.gz" else p.read_text()
            for p in (ml / "input/data").rglob("*") if p.is_file()
        },
    }
    host = os.environ["SM_CURRENT_HOST"]
    Path(os.environ["SM_OUTPUT_DATA_DIR"], host + ".json").write_text(json.dumps(seen))
    """

SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hyperparameters": {
        "hyperparameters": {
            "batch_size": 32,
            "lr": 1e-4,
            "n": True,
            "name": "adam w",
            "list": [1, 2, "a"],
            "nested": {"x": {"y": 1}},
            "empty": "",
            "한글": "값",
            "with-dash": 1.5,
            "k": "7",
        },
        "environment": {"MY_OWN": "two words\nand a line"},
        "metric_definitions": [{"Name": "a", "Regex": "a=(.*?);"}],
    },
    "two-hosts": {"instance_count": 2, "checkpoint_s3_uri": "s3://b/differential/"},
    "everything": {
        "use_spot_instances": True,
        "max_run": 3600,
        "max_wait": 7200,
        "checkpoint_s3_uri": "s3://b/other/",
        "debugger_hook_config": {"S3OutputPath": "s3://b/debug", "CollectionConfigurations": []},
        "tensorboard_output_config": {"S3OutputPath": "s3://b/tb"},
        "instance_type": "ml.p4d.24xlarge",
        "enable_network_isolation": True,
    },
}

DIFFER = {
    # The versions of PyTorch, which are the image's and this machine's own.
    "SM_DLC_TORCH_VERSION",
}


def view(job: Job) -> dict[str, Any]:
    """Host → what the script saw there, without what names the job or the engine."""
    record = job.record
    assert record.status == "Completed", (record.failure_reason, job.log()[-2000:])
    archive = job.archive("output") or {}
    text = {name: content.decode() for name, content in archive.items()}
    return {name: json.loads(content) for name, content in text.items()}


@pytest.mark.parametrize("name", SPECS)
def test_both_engines_show_the_script_the_same(submit: Submit, tmp_path: Path, name: str) -> None:
    """# contract: D17–D22, C1–C26, B1–B6"""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("1,2\n")
    inputs = {"training": str(data), "my-val.x": {"s3_data": str(data), "content_type": "text/csv"}}
    views = {}
    for engine in ("sandbox", "docker"):
        # The same name in both: it is in the ARN, in the hyperparameters, in the host names.
        job = submit(LOOK, engine=engine, job_name=f"same-{name}", inputs=inputs, **SPECS[name])
        job.wait()
        views[engine] = view(job)
        job.forget()
    ours, aws = views["sandbox"], views["docker"]
    assert sorted(ours) == sorted(aws)
    for host in ours:
        for seen in (ours[host], aws[host]):
            for variable in DIFFER:
                assert seen["environment"].pop(variable), variable
        for key in ours[host]:
            assert ours[host][key] == aws[host][key], f"{host}: {key}"
