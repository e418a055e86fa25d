"""What the user writes, compiled: the request, the uploads, and the sentence when it is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SpecError, ValidationError
from harness.model import LocalOptions, Spec, Upload
from harness.spec import TrainingSpec, load, parse_set

ROOT = Path(__file__).parents[2]
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:1.10-gpu-py38"
ROLE = "arn:aws:iam::111122223333:role/SageMakerRole"
WORDS = f"""
name = "mnist"
role = "{ROLE}"
entry_point = "train.py"
source_dir = "code"
image_uri = "{IMAGE}"
instance_type = "ml.p4d.24xlarge"
instance_count = 1
"""
NOW = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=timezone.utc)
BUCKET = "s3://sagemaker-us-east-1-111122223333"


@pytest.fixture(autouse=True)
def _surroundings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del home
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "train.py").write_text("print('hello')\n")
    (folder / "data" / "digits").mkdir(parents=True)
    (folder / "data" / "digits" / "0.png").write_bytes(b"0")
    return folder


def write(project: Path, text: str, name: str = "job.toml") -> Path:
    path = project / name
    path.write_text(text)
    return path


def compiled(project: Path, more: str = "", **options: Any) -> Spec:
    return load(write(project, WORDS + more), **options)


def refused(project: Path, more: str = "", words: str = WORDS, **options: Any) -> str:
    with pytest.raises(SpecError) as raised:
        load(write(project, words + more), **options)
    return str(raised.value)


def without(*names: str) -> str:
    return "\n".join(line for line in WORDS.splitlines() if line.split(" =")[0] not in names) + "\n"


def channels(spec: Spec) -> dict[str, Any]:
    return {each["ChannelName"]: each for each in spec.request["InputDataConfig"]}


# --- the whole ---------------------------------------------------------------------------------------


def test_the_example_spec_compiles(tmp_path: Path) -> None:
    """The seed's words, from the repository's own job.toml."""
    shutil.copy(ROOT / "job.toml", tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train_pytorch_smdataparallel_mnist.py").touch()
    (tmp_path / "data" / "digits").mkdir(parents=True)
    spec = load(tmp_path / "job.toml", now=NOW)
    request = spec.request
    assert spec.job_name == "mnist-2026-03-04-05-06-07-089"
    assert request["ResourceConfig"]["InstanceType"] == "ml.p4d.24xlarge"
    assert request["HyperParameters"]["sagemaker_program"] == '"train_pytorch_smdataparallel_mnist.py"'
    assert request["EnableManagedSpotTraining"] is True
    assert {"Name": "train:Loss", "Regex": "Train_Loss = (.*?) :"} in (
        request["AlgorithmSpecification"]["MetricDefinitions"]
    )
    assert spec.warnings == ()
    assert spec.local.images == {"763104351884.dkr.ecr.*/pytorch-training:*": "harness-pytorch"}
    assert {upload.kind for upload in spec.uploads} == {"source", "channel"}


def test_a_small_spec(project: Path) -> None:
    spec = compiled(project, now=NOW)
    job = "mnist-2026-03-04-05-06-07-089"
    source = f"{BUCKET}/{job}/source/sourcedir.tar.gz"
    assert spec.request == {
        "TrainingJobName": job,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        "HyperParameters": {
            "sagemaker_submit_directory": json.dumps(source),
            "sagemaker_program": '"train.py"',
            "sagemaker_container_log_level": "20",
            "sagemaker_job_name": f'"{job}"',
            "sagemaker_region": '"us-east-1"',
        },
        "OutputDataConfig": {"S3OutputPath": f"{BUCKET}/"},
        "ResourceConfig": {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
        "DebugHookConfig": {"S3OutputPath": f"{BUCKET}/", "CollectionConfigurations": []},
        "ProfilerConfig": {"S3OutputPath": f"{BUCKET}/", "DisableProfiler": False},
    }
    assert spec.uploads == (Upload(path=project / "code", uri=source, kind="source", entry_point="train.py"),)
    assert (spec.region, spec.account, spec.local) == ("us-east-1", "111122223333", LocalOptions())
    assert spec.job_arn == f"arn:aws:sagemaker:us-east-1:111122223333:training-job/{job}"


def test_python_and_toml_give_one_request(project: Path) -> None:
    more = (
        'hyperparameters = {lr = 1e-4}\ninputs = "data/digits"\ntags = {team = "vision"}\n[local]\ngpus = 2\n'
    )
    ours = TrainingSpec(
        name="mnist",
        role=ROLE,
        entry_point="train.py",
        source_dir="code",
        image_uri=IMAGE,
        instance_type="ml.p4d.24xlarge",
        instance_count=1,
        hyperparameters={"lr": 1e-4},
        inputs="data/digits",
        tags={"team": "vision"},
    ).compile(now=NOW, base=project, local={"gpus": 2})
    toml = compiled(project, more, now=NOW)
    assert ours.request == toml.request
    assert ours.uploads == toml.uploads
    assert ours.local == toml.local
    assert ours.origin == "python"


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_a_raw_request_is_a_spec(project: Path, suffix: str) -> None:
    request = compiled(project, now=NOW).request
    if suffix == "json":
        text = json.dumps(request)
    else:
        import yaml

        text = yaml.safe_dump(request)
    path = write(project, text, f"request.{suffix}")
    spec = load(path, local={"engine": "sandbox", "python": None})
    assert spec.request == request
    assert spec.local.engine == "sandbox"
    assert spec.account == "111122223333"
    assert spec.uploads == ()
    again = load(path, job_name="other", overrides={"ResourceConfig.InstanceCount": 3})
    assert again.job_name == "other"
    assert again.request["ResourceConfig"]["InstanceCount"] == 3
    assert again.provenance["ResourceConfig.InstanceCount"] == "--set ResourceConfig.InstanceCount"


def test_a_raw_request_is_checked_as_aws_would(project: Path) -> None:
    request = compiled(project, now=NOW).request
    request["HyperParameters"]["lr"] = 0.1
    request["InputDataConfg"] = []
    with pytest.raises(ValidationError) as raised:
        load(write(project, json.dumps(request), "request.json"))
    assert "2 validation errors detected" in str(raised.value)
    assert "'hyperParameters.lr'" in str(raised.value)
    assert "did you mean 'InputDataConfig'?" in str(raised.value)


# --- what is wrong in the file -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "job.toml",
            'name = "a"\nrole = \n',
            "job.toml is not valid TOML: Invalid value (at line 2, column 8)",
        ),
        ("job.json", '{\n "a": }', "job.json is not valid JSON: Expecting value (at line 2, column 7)"),
        ("job.yaml", "a: 1\nb: [", "job.yaml is not valid YAML:"),
        ("job.yaml", "- 1\n", "must be a table of words"),
        ("job.yaml", "name: mnist\n", "this is no CreateTrainingJob request"),
        ("job.txt", "", "a spec is a .toml, .json, .yaml or .yml file"),
    ],
)
def test_a_file_that_cannot_be_read(project: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(SpecError) as raised:
        load(write(project, text, name))
    assert words in str(raised.value)
    assert str(project / name) in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no\.toml can't be read: No such file"):
        load(tmp_path / "no.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="it is not UTF-8 text"):
        load(tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("instance_typ = 'x'", "unknown key 'instance_typ' in the spec; did you mean 'instance_type'?"),
        ("MaxRun = 1", "did you mean 'max_run'?"),
        ("StopingCondition = {}", "did you mean 'StoppingCondition'?"),
        ("xyzzy = 1", "unknown key 'xyzzy' in the spec; known are name, "),
        (
            "[inputs.training]\ns3_dat = 'x'",
            "unknown key 's3_dat' in [inputs.training]; did you mean 's3_data'?",
        ),
        (
            "[inputs.training]\nfile_system_id = 'fs-1'\nfile_system_tpe = 'EFS'",
            "did you mean 'file_system_type'?",
        ),
        ("[local]\nengin = 'docker'", "unknown key 'engin' in [local]; did you mean 'engine'?"),
        (
            "[[metric_definitions]]\nName = 'a'\nRegx = 'b'",
            "'Regx' in metric_definitions[0]; did you mean 'Regex'?",
        ),
        ("[distribution.smdistribted.dataparallel]\nenabled = true", "did you mean 'smdistributed'?"),
        ("[distribution.smdistributed.dataparalel]\nenabled = true", "did you mean 'dataparallel'?"),
        (
            "[distribution.mpi]\nenable = true",
            "unknown key 'enable' in [distribution.mpi]; did you mean 'enabled'?",
        ),
        ("[debugger_hook_config]\ns3_output = 'x'", "did you mean 's3_output_path'?"),
        ("[profiler_config]\ninterval = 1", "unknown key 'interval' in profiler_config"),
        ("[experiment_config]\nExperimentNam = 'x'", "did you mean 'ExperimentName'?"),
        ("[[tags]]\nkey = 'a'\nvalu = 'b'", "did you mean 'value'?"),
        ("instance_groups = [{nam = 'a'}]", "unknown key 'nam' in instance_groups[0]"),
    ],
)
def test_an_unknown_key_says_what_was_meant(project: Path, more: str, words: str) -> None:
    message = refused(project, more)
    assert words in message
    assert message.startswith(str(project / "job.toml"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("max_run = '1h'", "max_run must be an integer, not a string"),
        ("use_spot_instances = 1", "use_spot_instances must be true or false, not an integer"),
        ("volume_size = true", "volume_size must be an integer, not a boolean"),
        ("dependencies = 'lib'", "dependencies must be a list, not a string"),
        ("tags = 'x'", "tags must be a table or a list, not a string"),
        ("inputs = 3", "inputs must be a string or a table, not an integer"),
        ("distribution = {mpi = true}", "distribution.mpi must be a table such as {enabled = true}"),
        ("inputs = {a = 1}", "channel a must be an S3 URI, a local path or a table, not an integer"),
        ("hyperparameters = {when = 2026-01-01}", "hyperparameter when can't be written as JSON"),
        ("metric_definitions = []\nMetricDefinitions = []", "metric_definitions is given twice"),
        (
            "subnets = ['subnet-1']",
            "a VPC needs both subnets and security_group_ids; security_group_ids is missing",
        ),
        ("checkpoint_local_path = '/opt/ml/x'", "without checkpoint_s3_uri"),
        ("instance_groups = []", "instance_groups and instance_type and instance_count exclude each other"),
        ("disable_profiler = true\nprofiler_config = {}", "does not say disable_profiler = true"),
        ("distribution = {instance_groups = ['a']}", "which instance_groups has not (there are none)"),
        (
            "distribution = {pytorchddp = {enabled = true}, smdistributed = {dataparallel = {enabled = true}}}",
            "can't have both pytorchddp and smdistributed",
        ),
        ("[inputs.x]\ncontent_type = 'a'", "says not where the data is"),
        ("[inputs.x]\nuri = 's3://b/'\npath = 'data'", "has its place twice"),
        ("[local]\nengine = 'podman'", "[local] engine must be one of auto, docker, sandbox"),
        ("[local]\ngpus = 'some'", "[local] gpus must be"),
        ("[local]\nshm_size = 'big'", "[local] shm_size must be"),
        ("[local]\nstop_grace = '2 min'", "[local] stop_grace must be a number of seconds"),
        (
            "[local]\ns3_latency_ms = '20 ms'",
            "[local] s3_latency_ms must be milliseconds, 0 or more, not '20 ms'",
        ),
        ("[local]\ns3_latency_ms = -1", "[local] s3_latency_ms must be milliseconds"),
        ("[local]\ns3_throughput_mbps = inf", "[local] s3_throughput_mbps must be megabits per second, or 0"),
        ("[local]\nstrict = 'yes'", "[local] strict must be true or false"),
        ("[local]\nimages = ['a']", "[local] images must be a table of strings"),
        ("local = 3", "local must be a table"),
    ],
)
def test_a_value_that_makes_no_sense(project: Path, more: str, words: str) -> None:
    assert words in refused(project, more)


@pytest.mark.parametrize(
    ("missing", "more", "words"),
    [
        (("role",), "", "role is missing"),
        (
            ("role",),
            "role = 'SageMakerRole'",
            "role 'SageMakerRole' is a role's short name; give its full ARN, ",
        ),
        (("role",), "role = 'arn:aws:iam::1:user/x'", "is no role ARN"),
        (("instance_type",), "", "instance_type is missing"),
        (("image_uri",), "", "no image: give image_uri, or both framework_version and py_version"),
        (("image_uri",), "framework_version = '2.0'", "no image"),
        (("entry_point",), "", "source_dir is given without entry_point"),
        (
            ("entry_point", "source_dir"),
            "distribution = {mpi = {enabled = true}}",
            "distribution needs entry_point",
        ),
    ],
)
def test_a_word_that_is_missing(project: Path, missing: tuple[str, ...], more: str, words: str) -> None:
    assert words in refused(project, more, without(*missing))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("use_spot_instances = true\nmax_run = 432000\nmax_wait = 10800", "Invalid MaxWaitTimeInSeconds."),
        ("job_name = 'my_job'", "Value 'my_job' at 'trainingJobName'"),
        ("inputs = {'my channel' = 's3://b/'}", "'inputDataConfig.1.member.channelName'"),
        ("metric_definitions = [{Name = 'loss', Regex = '(('}]", "metric definition 'loss' does not compile"),
        ("volume_size = 9000", "more than the local storage of ml.p4d.24xlarge (8000 GB)"),
        ("volume_kms_key = 'k'", "VolumeKmsKeyId can't be used with ml.p4d.24xlarge"),
        ("environment = {A = 1}", "Value '1' at 'environment.A'"),
        (f"hyperparameters = {{text = '{'x' * 3000}'}}", "(value of 'text': 3002 characters)"),
        (
            "[hyperparameters]\n" + "\n".join(f"h{n} = {n}" for n in range(101)),
            "at 'hyperParameters' failed to satisfy constraint: Member must have length less than or equal to 100",
        ),
    ],
)
def test_what_aws_would_refuse(project: Path, more: str, words: str) -> None:
    path = write(project, WORDS + more)
    with pytest.raises(ValidationError) as raised:
        load(path)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["ml.p4d.24xlarg", "p4d.24xlarge", "ml.p4d.24xLarge"])
def test_a_typo_in_the_instance_type(project: Path, name: str) -> None:
    message = refused(project, overrides={"instance_type": name})
    assert f"there is no instance type '{name}'; did you mean ml.p4d.24xlarge?" in message


# --- the code ----------------------------------------------------------------------------------------


def test_entry_point_and_source_dir_that_are_not_there(project: Path) -> None:
    assert "entry_point no.py was not found in source_dir code" in refused(
        project, overrides={"entry_point": "no.py"}
    )
    assert "source_dir no does not exist" in refused(project, overrides={"source_dir": "no"})
    assert "source_dir code/train.py is a file; it must be a directory" in refused(
        project, overrides={"source_dir": "code/train.py"}
    )
    assert "must be a path inside source_dir" in refused(
        project, overrides={"entry_point": "../code/train.py"}
    )
    assert "not an S3 URI" in refused(project, overrides={"entry_point": "s3://b/train.py"})
    (project / "code" / "package").mkdir()
    assert "is a directory, not a script" in refused(project, overrides={"entry_point": "package"})
    assert "dependency lib does not exist" in refused(project, overrides={"dependencies": ["lib"]})


def test_a_dangling_link_in_source_dir_is_named(project: Path) -> None:
    (project / "code" / "deep").mkdir()
    (project / "code" / "deep" / "weights").symlink_to("/nowhere/weights.pt")
    message = refused(project)
    assert "dangling link: deep/weights points to /nowhere/weights.pt" in message
    (project / "code" / "deep" / "weights").unlink()
    (project / "code" / "deep" / "script").symlink_to("../train.py")
    assert compiled(project).uploads[0].path == project / "code"
    (project / "code" / ".#train.py").symlink_to("me@here.4711:1700000000")  # Emacs: unsaved changes
    assert compiled(project).uploads[0].path == project / "code"
    (project / "code2").symlink_to("nowhere")
    assert "source_dir code2 is a dangling link" in refused(project, overrides={"source_dir": "code2"})


def test_a_script_without_source_dir(project: Path) -> None:
    words = without("source_dir", "entry_point") + 'entry_point = "code/train.py"\ndependencies = ["data"]\n'
    spec = load(write(project, words), job_name="j")
    (upload,) = spec.uploads
    assert (upload.path, upload.entry_point) == (project / "code" / "train.py", "train.py")
    assert upload.dependencies == (project / "data",)
    assert spec.request["HyperParameters"]["sagemaker_program"] == '"train.py"'
    message = refused(project, 'entry_point = "gone.py"', without("source_dir", "entry_point"))
    assert f"entry_point gone.py was not found at {project / 'gone.py'}" in message


def test_source_that_is_in_s3_already(project: Path) -> None:
    spec = compiled(project, overrides={"source_dir": "s3://b/code/sourcedir.tar.gz"})
    assert spec.uploads == ()
    assert spec.request["HyperParameters"]["sagemaker_submit_directory"] == '"s3://b/code/sourcedir.tar.gz"'


def test_the_bucket_of_the_code_is_that_of_the_output(project: Path) -> None:
    spec = compiled(project, 'output_path = "s3://results/deep"', job_name="j")
    assert spec.uploads[0].uri == "s3://results/j/source/sourcedir.tar.gz"
    spec = compiled(project, 'code_location = "s3://code/deep/"', job_name="j")
    assert spec.uploads[0].uri == "s3://code/deep/j/source/sourcedir.tar.gz"


def test_an_isolated_container_gets_its_code_by_a_channel(project: Path) -> None:
    """contract: D11"""
    spec = compiled(project, "enable_network_isolation = true", job_name="j")
    submit = spec.request["HyperParameters"]["sagemaker_submit_directory"]
    assert submit == '"/opt/ml/input/data/code/sourcedir.tar.gz"'
    assert channels(spec)["code"]["DataSource"]["S3DataSource"]["S3Uri"] == spec.uploads[0].uri


def test_hyperparameters_of_an_image_without_script(project: Path) -> None:
    """contract: C6, the generic Estimator"""
    words = without("source_dir", "entry_point")
    spec = load(write(project, words + "hyperparameters = {a = true, b = 'adam', c = 1e-5}"))
    assert spec.request["HyperParameters"] == {"a": "True", "b": "adam", "c": "1e-05"}
    assert "HyperParameters" not in load(write(project, words)).request


def test_hyperparameters_of_a_script(project: Path) -> None:
    """contract: C6, framework estimators"""
    spec = compiled(project, "hyperparameters = {a = true, b = 'adam', c = 1e-5, 'd.e' = [1, 'x']}")
    given = {key: value for key, value in spec.request["HyperParameters"].items() if "sagemaker" not in key}
    assert given == {"a": "true", "b": '"adam"', "c": "1e-05", "d.e": '[1, "x"]'}


# --- the image ---------------------------------------------------------------------------------------


def test_framework_version_without_the_sdk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    message = refused(project, 'framework_version = "1.10"\npy_version = "py38"', without("image_uri"))
    assert "pip install 'sagemaker-harness[sagemaker]'" in message
    assert "or give image_uri" in message


def test_an_image_that_was_looked_up_is_kept(
    project: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    cache = home / "cache" / "image-uris.json"
    cache.parent.mkdir(exist_ok=True)
    cache.write_text(json.dumps({json.dumps(["us-east-1", "1.10", "py38", "ml.p4d.24xlarge", None]): IMAGE}))
    words = without("image_uri") + 'framework_version = "1.10"\npy_version = "py38"\n'
    spec = load(write(project, words))
    assert spec.request["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert spec.request["AlgorithmSpecification"]["EnableSageMakerMetricsTimeSeries"] is True
    assert spec.provenance["AlgorithmSpecification.TrainingImage"].endswith("job.toml")


# --- channels ----------------------------------------------------------------------------------------


def test_local_data(project: Path) -> None:
    (project / "one.csv").write_text("1\n")
    more = (
        '[inputs]\na = "data/digits"\nb = "one.csv"\nc = {path = "data", content_type = "image/png"}\n'
        f'd = "file://{project / "data"}"\ne = "s3://b/e/"\n'
    )
    spec = compiled(project, more, job_name="j")
    uris = {name: each["DataSource"]["S3DataSource"]["S3Uri"] for name, each in channels(spec).items()}
    assert uris == {
        "a": f"{BUCKET}/j/input/a/",
        "b": f"{BUCKET}/j/input/b/one.csv",
        "c": f"{BUCKET}/j/input/c/",
        "d": f"{BUCKET}/j/input/d/",
        "e": "s3://b/e/",
    }
    assert channels(spec)["c"]["ContentType"] == "image/png"
    local = {upload.channel: (upload.path, upload.uri) for upload in spec.uploads if upload.kind == "channel"}
    assert local == {
        "a": (project / "data" / "digits", uris["a"]),
        "b": (project / "one.csv", uris["b"]),
        "c": (project / "data", uris["c"]),
        "d": (project / "data", uris["d"]),
    }


def test_a_data_path_that_is_not_there(project: Path) -> None:
    message = refused(project, 'inputs = {training = "data/nothing"}')
    assert (
        "channel training: the data path data/nothing can't be read (No such file or directory: " in message
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_data_path_that_cannot_be_read(project: Path) -> None:
    (project / "data").chmod(0)
    try:
        assert "can't be read (Permission denied" in refused(project, 'inputs = "data"')
    finally:
        (project / "data").chmod(0o755)


def test_channels_in_every_spelling(project: Path) -> None:
    more = """
subnets = ["subnet-1"]
security_group_ids = ["sg-1"]
[inputs.s3]
uri = "s3://b/p/"
distribution = "ShardedByS3Key"
input_mode = "Pipe"
compression = "Gzip"
record_wrapping = "RecordIO"
shuffle_config = {seed = 7}
[inputs.efs]
file_system_id = "fs-0123456789abcdef0"
file_system_type = "EFS"
directory_path = "/dataset"
[inputs.aws]
InputMode = "FastFile"
[inputs.aws.DataSource.S3DataSource]
S3DataType = "S3Prefix"
S3Uri = "s3://b/q/"
"""
    found = channels(compiled(project, more))
    assert found["s3"] == {
        "ChannelName": "s3",
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "S3Prefix",
                "S3Uri": "s3://b/p/",
                "S3DataDistributionType": "ShardedByS3Key",
            }
        },
        "InputMode": "Pipe",
        "CompressionType": "Gzip",
        "RecordWrapperType": "RecordIO",
        "ShuffleConfig": {"Seed": 7},
    }
    assert found["efs"]["DataSource"]["FileSystemDataSource"]["FileSystemAccessMode"] == "ro"
    assert found["aws"]["InputMode"] == "FastFile"


# --- names, region, local, overrides -----------------------------------------------------------------


def test_names(project: Path) -> None:
    """contract: K1"""
    assert compiled(project, job_name="exact").job_name == "exact"
    assert compiled(project, 'job_name = "exact-2"').job_name == "exact-2"
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    assert compiled(project, now=east).job_name == "mnist-2026-03-04-05-06-07-089"
    nameless = load(write(project, without("name")), now=NOW)
    assert nameless.job_name == "pytorch-training-2026-03-04-05-06-07-089"
    long = load(write(project, without("name") + f'base_job_name = "{"x" * 80}"'), now=NOW)
    assert len(long.job_name) == 63


def test_region(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    spec = compiled(project)
    assert spec.region == "eu-west-1"
    assert spec.request["OutputDataConfig"]["S3OutputPath"] == "s3://sagemaker-eu-west-1-111122223333/"
    assert "the job's region is eu-west-1" in spec.warnings[0]  # contract: K26
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert compiled(project).region == "eu-north-1"
    assert compiled(project, 'region = "us-west-2"').region == "us-west-2"


def test_local_options(project: Path) -> None:
    more = """
[local]
engine = "docker"
gpus = "0,2"
shm_size = "64m"
memory = 1073741824
stop_grace = 5
s3_latency_ms = 20
s3_throughput_mbps = 12.5
offline = true
[local.file_systems]
"fs-0123456789abcdef0" = "data"
[local.images]
"a*" = "b"
"""
    options = compiled(project, more, local={"engine": "sandbox", "images": {"c": "d"}, "gpus": None}).local
    assert options == LocalOptions(
        engine="sandbox",
        gpus="0,2",
        shm_size="64m",
        memory="1073741824",
        stop_grace=5.0,
        s3_latency_ms=20.0,
        s3_throughput_mbps=12.5,
        offline=True,
        file_systems={"fs-0123456789abcdef0": str(project / "data")},
        images={"a*": "b", "c": "d"},
    )


def test_the_local_table_is_no_part_of_the_request(project: Path) -> None:
    assert (
        compiled(project, now=NOW).request == compiled(project, '[local]\nengine = "docker"', now=NOW).request
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hyperparameters.lr=0.1", ("hyperparameters.lr", 0.1)),
        ("instance_type=ml.g5.xlarge", ("instance_type", "ml.g5.xlarge")),
        ("use_spot_instances=true", ("use_spot_instances", True)),
        ("subnets=['a', 'b']", ("subnets", ["a", "b"])),
        ('name="x=y"', ("name", "x=y")),
        ("name=", ("name", "")),
        ("hyperparameters.day=2026-01-01", ("hyperparameters.day", "2026-01-01")),
        ("environment.X=1", ("environment.X", "1")),
        ("environment.X=true", ("environment.X", "true")),
        ('environment.X="1"', ("environment.X", "1")),
    ],
)
def test_assignments_of_the_command_line(text: str, expected: tuple[str, Any]) -> None:
    assert parse_set(text) == expected


def test_a_mistyped_hyperparameter_is_offered(project: Path) -> None:
    said = refused(project, "[hyperparameters]\nepochs = 1", overrides={"epchs": 2})
    assert "unknown key 'epchs' in the spec; did you mean 'epochs'?" in said


def test_what_is_no_assignment() -> None:
    with pytest.raises(SpecError, match="no assignment"):
        parse_set("instance_type")


def test_a_hyperparameters_bare_name_stands_for_it(project: Path) -> None:
    """Only one that the file has: a misspelt word of the spec must not become a hyperparameter."""
    more = 'hyperparameters = {lr = 0.1, "a.b" = 1, role = 1}'
    spec = compiled(project, more, overrides={"lr": 0.5, "a.b": 2, "max_run": 60})
    assert (spec.request["HyperParameters"]["lr"], spec.request["HyperParameters"]["a.b"]) == ("0.5", "2")
    assert spec.request["StoppingCondition"]["MaxRuntimeInSeconds"] == 60
    assert spec.provenance["HyperParameters.lr"] == "--set lr"
    assert "unknown key 'momentum'" in refused(project, more, overrides={"momentum": 0.9})
    assert "role 'x'" in refused(project, more, overrides={"role": "x"})


def test_overrides_win_and_are_told(project: Path) -> None:
    more = "hyperparameters = {lr = 1, batch = 2}"
    spec = compiled(
        project,
        more,
        overrides={"hyperparameters.lr": 0.5, 'hyperparameters."a.b"': 3, "instance_type": "ml.g5.xlarge"},
    )
    given = spec.request["HyperParameters"]
    assert (given["lr"], given["batch"], given["a.b"]) == ("0.5", "2", "3")
    assert spec.request["ResourceConfig"]["InstanceType"] == "ml.g5.xlarge"
    assert spec.provenance["HyperParameters.lr"] == "--set hyperparameters.lr"
    assert spec.provenance["HyperParameters.batch"] == str(project / "job.toml")
    assert spec.provenance["ResourceConfig.InstanceType"] == "--set instance_type"
    assert spec.provenance["ResourceConfig.VolumeSizeInGB"] == "default"
    assert "is no table" in refused(project, overrides={"name.x": 1})
    assert "did you mean 'instance_type'?" in refused(project, overrides={"instance_typ": "x"})


def test_members_in_awss_spelling(project: Path) -> None:
    more = """
MetricDefinitions = [{Name = "a", Regex = "a=(.*)"}]
RetryStrategy = {MaximumRetryAttempts = 2}
[AlgorithmSpecification]
EnableSageMakerMetricsTimeSeries = false
"""
    spec = compiled(project, more)
    assert spec.request["AlgorithmSpecification"] == {
        "TrainingImage": IMAGE,
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "a", "Regex": "a=(.*)"}],
        "EnableSageMakerMetricsTimeSeries": False,
    }
    assert spec.request["RetryStrategy"] == {"MaximumRetryAttempts": 2}


def test_lints_come_with_the_spec(project: Path) -> None:
    more = "use_spot_instances = true\nmax_wait = 86400\n[hyperparameters]\nsagemaker_x = 1\n"
    found = " | ".join(compiled(project, more).warnings)
    assert "spot training without checkpoint_s3_uri" in found  # contract: K10
    assert "sagemaker_x: names that begin sagemaker_ never reach your script" in found  # contract: K4
    more = "[distribution]\ntorch_distributed.enabled = true"
    assert "from PyTorch 1.13.1 on, not 1.10" in compiled(project, more).warnings[0]  # contract: K20


def test_a_warm_load_needs_no_botocore(project: Path, home: Path) -> None:
    path = write(project, WORDS)
    code = (
        "import sys; from harness.spec import load; load(sys.argv[1]); "
        "print(*sorted({'botocore', 'boto3', 'sagemaker', 'yaml', 'rich', 'docker'} & set(sys.modules)))"
    )
    environment = {"HARNESS_HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == ""
