"""`train` of the sandbox, run as the program that it is, on trees below SAGEMAKER_BASE_DIR."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import contract

COMMAND = contract.toolkit_command(sys.executable)
TOOLKIT = Path(COMMAND[1]).parent

PROBE = """\
import json, os, sys
with open(os.path.join(os.environ["SM_OUTPUT_DIR"], "data", "probe.json"), "w") as file:
    json.dump({"argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd(), "path": sys.path}, file)
"""


@dataclass
class Job:
    """One host's tree, and what running the toolkit on it gave."""

    base: Path
    code: dict[str, str] = field(default_factory=lambda: {"train.py": PROBE})
    hyperparameters: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    channels: dict[str, dict[str, str]] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=lambda: ["localhost"])
    instance_type: str = "ml.c5.xlarge"

    def write(self) -> dict[str, str]:
        """The tree on disk; the environment to start in."""
        config = self.base / "input/config"
        for path in (config, self.base / "input/data", self.base / "output/data", self.base / "model"):
            path.mkdir(parents=True)
        for name, content in self.code.items():
            path = self.base / "code" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        hyperparameters = {"sagemaker_program": '"train.py"', **self.hyperparameters}
        (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
        (config / "inputdataconfig.json").write_text(json.dumps(self.channels))
        group = {
            "instance_group_name": "homogeneousCluster",
            "instance_type": self.instance_type,
            "hosts": self.hosts[::-1],
        }
        resources = {
            "current_host": self.hosts[0],
            "current_instance_type": self.instance_type,
            "current_group_name": "homogeneousCluster",
            "hosts": sorted(self.hosts),
            "instance_groups": [group],
            "network_interface_name": "eth0",
        }
        (config / "resourceconfig.json").write_text(json.dumps(resources))
        return {
            "PATH": "/usr/bin:/bin",
            "SAGEMAKER_BASE_DIR": str(self.base),
            "TRAINING_JOB_NAME": "the-job",
            "CUDA_VISIBLE_DEVICES": "",
            **contract.image_environment(),
            **self.environment,
        }

    def start(self, command: tuple[str, ...] = COMMAND) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, "train"], env=self.write(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, command: tuple[str, ...] = COMMAND) -> Result:
        process = self.start(command)
        out, err = process.communicate(timeout=120)
        return Result(base=self.base, code=process.returncode, out=out, log=err.decode())


@dataclass(frozen=True)
class Result:
    base: Path
    code: int
    out: bytes
    log: str

    @property
    def failure(self) -> str:
        return (self.base / "output/failure").read_text()

    @property
    def probe(self) -> Any:
        assert self.code == 0, self.log
        return json.loads((self.base / "output/data/probe.json").read_text())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(base=tmp_path / "ml")


def program(directory: Path, name: str, body: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{body}\n")
    (directory / name).chmod(0o755)


# ------------------------------------------------------------------------- environment


def test_every_variable_in_its_order(job: Job) -> None:  # contract: D15–D19
    base = str(job.base)
    job.hyperparameters = {
        "batch-size": "64",
        "lr": "1e-05",
        "opt": '"adam"',
        "flag": "true",
        "nothing": "null",
        "sagemaker_job_name": '"the-job"',
        "sagemaker_container_log_level": "20",
        "sagemaker_submit_directory": '"/opt/ml/code"',
        "sagemaker_estimator_module": '"sagemaker.pytorch.estimator"',
    }
    job.channels = {
        "training": {"TrainingInputMode": "File"},
        "my-val.x": {"TrainingInputMode": "Pipe"},
    }
    environ = job.run().probe["environ"]
    found = {name: value for name, value in environ.items() if name.startswith("SM_")}
    training = json.loads(found.pop("SM_TRAINING_ENV"))
    resources = json.loads((job.base / "input/config/resourceconfig.json").read_text())
    found.pop("SM_DLC_TORCH_VERSION", None)
    compact = {"separators": (",", ":"), "sort_keys": True}
    expected = {
        "SM_HOSTS": '["localhost"]',
        "SM_NETWORK_INTERFACE_NAME": "eth0",
        "SM_HPS": '{"batch-size":64,"flag":true,"lr":1e-05,"nothing":null,"opt":"adam"}',
        "SM_USER_ENTRY_POINT": "train.py",
        "SM_FRAMEWORK_PARAMS": '{"sagemaker_estimator_module":"sagemaker.pytorch.estimator"}',
        "SM_RESOURCE_CONFIG": json.dumps(resources, **compact),
        "SM_INPUT_DATA_CONFIG": json.dumps(job.channels, **compact),
        "SM_OUTPUT_DATA_DIR": f"{base}/output/data",
        "SM_CHANNELS": '["my-val.x","training"]',
        "SM_CURRENT_HOST": "localhost",
        "SM_CURRENT_INSTANCE_TYPE": "ml.c5.xlarge",
        "SM_CURRENT_INSTANCE_GROUP": "homogeneousCluster",
        "SM_CURRENT_INSTANCE_GROUP_HOSTS": '["localhost"]',
        "SM_INSTANCE_GROUPS": '["homogeneousCluster"]',
        "SM_INSTANCE_GROUPS_DICT": json.dumps(
            {"homogeneousCluster": resources["instance_groups"][0]}, **compact
        ),
        "SM_DISTRIBUTION_INSTANCE_GROUPS": "[]",
        "SM_IS_HETERO": "false",
        "SM_MODULE_NAME": "train",
        "SM_LOG_LEVEL": "20",
        "SM_FRAMEWORK_MODULE": "sagemaker_pytorch_container.training:main",
        "SM_INPUT_DIR": f"{base}/input",
        "SM_INPUT_CONFIG_DIR": f"{base}/input/config",
        "SM_OUTPUT_DIR": f"{base}/output",
        "SM_NUM_CPUS": str(os.cpu_count()),
        "SM_NUM_GPUS": "0",
        "SM_NUM_NEURONS": "0",
        "SM_MODEL_DIR": f"{base}/model",
        "SM_MODULE_DIR": "/opt/ml/code",
        "SM_USER_ARGS": (
            '["--batch-size","64","--flag","True","--lr","1e-05","--nothing","","--opt","adam"]'
        ),
        "SM_OUTPUT_INTERMEDIATE_DIR": f"{base}/output/intermediate",
        "SM_CHANNEL_TRAINING": f"{base}/input/data/training",
        "SM_CHANNEL_MY-VAL.X": f"{base}/input/data/my-val.x",
        "SM_HP_BATCH-SIZE": "64",
        "SM_HP_LR": "1e-05",
        "SM_HP_OPT": "adam",
        "SM_HP_FLAG": "true",
        "SM_HP_NOTHING": "",
    }
    assert found == expected  # contract: D17, D18, D19, D23
    assert list(found) == list(expected)
    assert training["master_hostname"] == "localhost"
    assert training["is_master"] is True
    assert training["job_name"] == "the-job"
    assert training["topology"] == []  # contract: C15
    assert environ["SAGEMAKER_JOB_NAME"] == "the-job"  # contract: D20
    assert environ["CURRENT_HOST"] == "localhost"
    assert environ["SAGEMAKER_REGION"] == ""


def test_pytorch_variables(job: Job, tmp_path: Path) -> None:  # contract: D22, H12
    torch = tmp_path / "site/torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text("from typing import Optional\n__version__: str = '2.6.0+cu124'\n")
    job.hosts = ["algo-2", "algo-1"]
    job.environment = {"PYTHONPATH": str(torch.parent), "SM_STUDIO_LOCAL_MODE": "true"}
    environ = job.run().probe["environ"]
    assert environ["MASTER_ADDR"] == "algo-1"
    assert environ["MASTER_PORT"] == "7777"
    assert environ["NCCL_SOCKET_IFNAME"] == "eth0"
    assert environ["NCCL_IB_DISABLE"] == "1"
    assert environ["NCCL_DEBUG"] == "WARN"
    assert environ["SM_DLC_TORCH_VERSION"] == "2.6.0+cu124"
    assert not {"RANK", "WORLD_SIZE"} & set(environ)  # contract: H9


def test_what_the_engine_tells_is_not_seen(job: Job) -> None:
    job.environment = {"HARNESS_MASTER_PORT": "34567", "HARNESS_EXTRA_PATH": "/standins:/usr/lib"}
    environ = job.run().probe["environ"]
    assert environ["MASTER_PORT"] == "34567"
    assert not [name for name in environ if name.startswith("HARNESS_")]
    path = environ["PYTHONPATH"].split(":")
    assert path[0] == str(job.base / "code")
    assert path[-2:] == ["/standins", "/usr/lib"]


@pytest.mark.parametrize("safe", ["", "1"])
def test_nothing_of_ours_hides_the_users_modules(job: Job, safe: str) -> None:  # contract: D20
    job.environment = {"PYTHONSAFEPATH": safe}
    job.code["train.py"] = "import toolkit, _errors, _trainer\n" + PROBE
    job.code |= {"toolkit.py": "", "_errors.py": "", "_trainer.py": ""}
    found = job.run().probe
    assert found["cwd"] == str(job.base / "code")  # contract: A22
    assert any(path.endswith(".zip") for path in found["environ"]["PYTHONPATH"].split(":"))
    assert not [path for path in found["path"] if path.startswith(str(TOOLKIT.parent))]


@pytest.mark.parametrize(
    ("visible", "listed", "count"),
    [
        ("", None, "0"),
        ("-1", None, "0"),
        ("0,2", None, "2"),
        ("GPU-a, GPU-b,", None, "2"),
        ("1", "echo 'GPU 0: x'; echo 'GPU 1: x'", "1"),
        (None, "echo 'GPU 0: x'; echo 'GPU 1: x'; echo other", "2"),
        (None, "echo 'GPU 0: x'; exit 9", "0"),
        (None, None, "0"),
    ],
)
def test_gpus(
    job: Job, tmp_path: Path, visible: str | None, listed: str | None, count: str
) -> None:  # contract: D17
    if listed is not None:
        program(tmp_path / "bin", "nvidia-smi", listed)
    job.environment = {"PATH": f"{tmp_path}/bin:/bin"}
    environment = job.write()
    shutil.rmtree(job.base)
    environment.pop("CUDA_VISIBLE_DEVICES")
    job.environment = {"PATH": f"{tmp_path}/bin:/bin", "CUDA_VISIBLE_DEVICES": visible or ""}
    if visible is None:
        command = ("env", "-u", "CUDA_VISIBLE_DEVICES", *COMMAND)
        assert job.run(command).probe["environ"]["SM_NUM_GPUS"] == count
    else:
        assert job.run().probe["environ"]["SM_NUM_GPUS"] == count


# --------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        # contract: D24, D27, D28
        ("key", "64", ["--key", "64"]),
        ("k", "64", ["-k", "64"]),
        ("key", "1e3", ["--key", "1000.0"]),
        ("key", "007", ["--key", "007"]),
        ("key", "true", ["--key", "True"]),
        ("key", "True", ["--key", "True"]),
        ("key", "null", ["--key", ""]),
        ("key", "NaN", ["--key", "nan"]),
        ("key", '"adam"', ["--key", "adam"]),
        ("key", "adam", ["--key", "adam"]),
        ("key", "", ["--key", ""]),
        ("key", '[1,2,"a"]', ["--key", "[1, 2, 'a']"]),
        ("key", '{"b":1,"a":"x y"}', ["--key", "a=x y,b=1"]),
        ("key", "a;echo INJECTED $HOME *", ["--key", "a;echo INJECTED $HOME *"]),
        # contract: C7, D25, D26
        ("_tuning_objective_metric", "loss", []),
        ("default_user_module_name", "x", []),
        ("sagemaker_anything", "1", []),
        ("mp_parameters", "{}", ["--mp_parameters", ""]),
    ],
)
def test_arguments(job: Job, name: str, value: str, words: list[str]) -> None:
    job.hyperparameters = {name: value}
    assert job.run().probe["argv"] == ["train.py", *words]


def test_arguments_are_sorted(job: Job) -> None:  # contract: D27
    job.hyperparameters = {"b": "1", "a": "2", "B": "3"}
    assert job.run().probe["argv"][1:] == ["-B", "3", "-a", "2", "-b", "1"]


def test_shell_of_old_toolkits(job: Job) -> None:  # contract: D29
    job.environment = {"HARNESS_TOOLKIT_SHELL": "1", "WHO": "me"}
    job.hyperparameters = {"a": "", "b": "x  y", "c": "$WHO", "d": "\"'q'\"", "e": "1;echo INJECTED"}
    result = job.run()
    assert result.probe["argv"][1:] == ["-a", "-b", "x", "y", "-c", "me", "-d", "q", "-e", "1"]
    assert result.out == b"INJECTED\n"


def test_shell_of_old_toolkits_for_shell_scripts(job: Job) -> None:  # contract: D31
    job.environment = {"HARNESS_TOOLKIT_SHELL": "1", "WHO": "me"}
    job.code = {"run.sh": 'for word; do echo "<$word>"; done\n'}
    job.hyperparameters = {"sagemaker_program": "run.sh", "b": "x  y", "c": "$WHO", "d": 'say "q"'}
    assert job.run().out == b"<-b>\n<x  y>\n<-c>\n<me>\n<-d>\n<say q>\n"


# ------------------------------------------------------------------------- entry points


def test_shell_script(job: Job) -> None:  # contract: A23, A25, D31
    job.code = {"run.sh": 'for word; do echo "<$word>"; done\npwd\n', "requirements.txt": "never\n"}
    job.hyperparameters = {"sagemaker_program": "run.sh", "x": "a  b;$HOME"}
    result = job.run()
    assert result.out.decode() == f"<-x>\n<a  b;$HOME>\n{job.base}/code\n"
    assert (job.base / "code/run.sh").stat().st_mode & 0o777 == 0o777


def test_requirements(job: Job, tmp_path: Path) -> None:  # contract: A24
    site = tmp_path / "site"
    (job.base / "code").mkdir(parents=True)
    with zipfile.ZipFile(job.base / "code/thing-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "WORDS = 'installed'\n")
        wheel.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
        wheel.writestr(
            "thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("thing-1.dist-info/RECORD", "")
    job.code = {
        "train.py": "import thing; print(thing.WORDS)",
        "requirements.txt": "./thing-1-py3-none-any.whl\n",
    }
    job.environment = {
        "PIP_TARGET": str(site),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": str(site),
    }
    result = job.run()
    assert result.code == 0, result.log
    assert result.out.endswith(b"installed\n")
    assert "Installing dependencies from requirements.txt" in result.log


def test_requirements_that_fail(job: Job) -> None:  # contract: A24, G13, G14
    job.code["requirements.txt"] = "./there-is-no-such-file.whl\n"
    job.environment = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = job.run()
    assert result.code == 1
    assert result.failure.startswith("InstallRequirementsError:\nExitCode 1\nErrorMessage ")
    assert result.failure.endswith('-m pip install -r requirements.txt"')


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        ("../train.py", "inside your source directory"),
        ("-c.py", "may not start with"),
        ("my train.py", "only letters"),
    ],
)
def test_entry_point_names(job: Job, name: str, words: str) -> None:
    job.hyperparameters = {"sagemaker_program": name}
    result = job.run()
    assert result.code == 1
    assert words in result.failure


# ---------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("body", "number", "message", "extra"),
    [
        # contract: G14, G15
        ("import sys; sys.exit(3)", 3, "", None),
        ("import os; os._exit(137)", 137, "", "OutOfMemory: Process killed by SIGKILL (signal 9)"),
        ("import os; os.kill(os.getpid(), 9)", -9, "", None),
        ("import os; os.kill(os.getpid(), 11)", -11, "", None),
        (
            "import os; os.write(2, b'talk\\nKeyError: a\\nb\\nKeyError: a\\nb\\n'); os._exit(1)",
            1,
            "KeyError: a\n b",
            None,
        ),
        (
            "import os; os.write(2, b'OSError: in stderr\\n'); os.write(1, b'ValueError: \\xff'); os._exit(1)",
            1,
            "ValueError: \ufffd\n OSError: in stderr",
            None,
        ),
        ("import sys; sys.exit('NoSuchName: x')", 1, "", None),
        (
            "import os; os.write(2, b'ImportError: torch_xla/x'); os._exit(1)",
            1,
            "ImportError: torch_xla/x",
            "SMTrainingCompiler Error: Error occurred in SMTrainingCompiler.",
        ),
    ],
)
def test_failure_text(job: Job, body: str, number: int, message: str, extra: str | None) -> None:
    job.code = {"train.py": body}
    result = job.run()
    assert result.code == 1  # contract: G13
    told = "" if extra is None else f'ExtraInfo "{extra}"\n'
    assert result.failure == (
        f'ExecuteUserScriptError:\nExitCode {number}\nErrorMessage "{message}"\n{told}'
        f'Command "{sys.executable} -- train.py"'
    )
    assert result.failure in result.log
    assert not (job.base / "output/success").exists()


def test_success(job: Job) -> None:  # contract: B20, G34
    result = job.run()
    assert (result.code, (job.base / "output/success").read_bytes()) == (0, b"")
    assert not (job.base / "output/failure").exists()
    lines = [
        "sagemaker_pytorch_container.training INFO     Block until all host DNS lookups succeed.",
        "sagemaker_pytorch_container.training INFO     Invoking user training script.",
        "sagemaker-training-toolkit INFO     Invoking user script\n\nTraining Env:\n\n{",
        "\nEnvironment variables:\n\nSM_HOSTS=",
        f"\nInvoking script with the following command:\n\n{sys.executable} -- train.py\n",
        "sagemaker-training-toolkit INFO     Reporting training SUCCESS\n",
    ]
    positions = [result.log.index(line) for line in lines]
    assert positions == sorted(positions)


def test_the_users_failure_file_wins(job: Job) -> None:  # contract: B20
    job.code = {
        "train.py": "import os\nopen(os.environ['SM_OUTPUT_DIR'] + '/failure', 'w').write('mine')\nos._exit(9)"
    }
    result = job.run()
    assert (result.code, result.failure) == (1, "mine")


def test_crash_of_the_toolkit_itself(job: Job) -> None:  # contract: G13, G16
    job.write()
    (job.base / "input/config/resourceconfig.json").unlink()
    done = subprocess.run(COMMAND, env={"SAGEMAKER_BASE_DIR": str(job.base)}, capture_output=True)
    assert done.returncode == 2  # ENOENT
    failure = (job.base / "output/failure").read_text()
    assert failure.startswith("Framework Error: \nTraceback (most recent call last):\n")


def test_native_launcher_captures_nothing(job: Job) -> None:  # contract: D30, G15
    job.code = {"train.py": "raise ValueError('x')"}
    job.hyperparameters = {"sagemaker_toolkit_native_launcher_enabled": "true"}
    result = job.run()
    assert 'ErrorMessage ""' in result.failure
    assert "ValueError: x" in result.log
    assert "capture_error is False. Default is True" in result.log


def test_plain_toolkit(job: Job) -> None:  # contract: A21
    job.environment = {"SAGEMAKER_TRAINING_MODULE": ""}
    environ = job.run().probe["environ"]
    assert "MASTER_ADDR" not in environ
    assert environ["SM_FRAMEWORK_MODULE"] == ""


def test_log_level(job: Job) -> None:  # contract: D33
    job.hyperparameters = {"sagemaker_container_log_level": "40"}
    result = job.run()
    assert (result.code, result.log) == (0, "")


def test_dns_is_awaited(job: Job) -> None:  # contract: H2
    job.hosts = ["localhost", "no-such-host.invalid"]
    process = job.start()
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    _, err = process.communicate()
    assert b"Block until all host DNS lookups succeed." in err
    assert b"Invoking user training script" not in err


# --------------------------------------------------------------------------- launchers


def torchrun(job: Job, tmp_path: Path) -> None:
    program(tmp_path / "bin", "torchrun", f'exec {sys.executable} train.py "$0" "$@"')
    job.environment["PATH"] = f"{tmp_path}/bin:{Path(sys.executable).parent}:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("gpus", "processes", "count"),
    [("", None, "1"), ("0,1,2,3", None, "4"), ("0,1", "3", "3")],
)
def test_torchrun(
    job: Job, tmp_path: Path, gpus: str, processes: str | None, count: str
) -> None:  # contract: H13, H14, H16
    job.instance_type = "ml.p4d.24xlarge"
    job.hyperparameters = {"sagemaker_torch_distributed_enabled": "true", "lr": "0.1"}
    if processes is not None:
        job.hyperparameters["sagemaker_mpi_num_of_processes_per_host"] = processes
    job.environment = {"CUDA_VISIBLE_DEVICES": gpus}
    torchrun(job, tmp_path)
    found = job.run().probe
    assert found["argv"][2:] == ["--nnodes", "1", "--nproc_per_node", count, "train.py", "--lr", "0.1"]
    assert found["environ"]["NCCL_PROTO"] == "simple"
    assert found["environ"]["FI_PROVIDER"] == "efa"
    assert found["environ"]["FI_EFA_USE_DEVICE_RDMA"] == "1"
    assert found["environ"]["RDMAV_FORK_SAFE"] == "1"
    assert found["environ"]["SM_DISTRIBUTION_INSTANCE_GROUPS"] == '["homogeneousCluster"]'


def test_torchrun_on_several_hosts(job: Job, tmp_path: Path) -> None:  # contract: H12, H13
    job.hosts = ["algo-1", "algo-3", "algo-2"]
    job.hyperparameters = {"sagemaker_torch_distributed_enabled": "true"}
    job.environment = {"SM_STUDIO_LOCAL_MODE": "true", "HARNESS_MASTER_PORT": "5"}
    torchrun(job, tmp_path)
    assert job.run().probe["argv"][2:] == (
        [
            "--nnodes",
            "3",
            "--nproc_per_node",
            "1",
            "--master_addr",
            "algo-2",
            "--master_port",
            "5",
            "--node_rank",
            "2",
            "train.py",
        ]
    )


@pytest.mark.parametrize("code", [{"run.sh": ""}, {"setup.py": "", "train.py": ""}])
def test_torchrun_takes_only_programs(job: Job, code: dict[str, str]) -> None:  # contract: H13
    job.code = code
    name = sorted(code)[0] if "run.sh" in code else "train.py"
    job.hyperparameters = {"sagemaker_program": name, "sagemaker_torch_distributed_enabled": "true"}
    job.environment = {"PIP_NO_INDEX": "1", "PIP_TARGET": str(job.base / "site")}
    result = job.run()
    assert result.code == 1


@pytest.mark.slow
def test_real_torchrun(job: Job) -> None:  # contract: H13, H14
    pytest.importorskip("torch")
    job.code = {
        "train.py": "import os\nos.write(1, ' '.join(os.environ[n] for n in"
        " ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')).encode() + b'\\n')\n"
    }
    job.hyperparameters = {
        "sagemaker_torch_distributed_enabled": "true",
        "sagemaker_mpi_num_of_processes_per_host": "2",
    }
    job.environment = {"HARNESS_MASTER_PORT": "29517"}
    result = job.run()
    assert result.code == 0, result.log + result.out.decode()
    workers = [line for line in result.out.decode().splitlines() if line.count(" ") == 3]
    assert sorted(workers) == ["0 0 2 29517", "1 1 2 29517"]


# ------------------------------------------------------------------------------ output


def test_binary_output_is_untouched(job: Job) -> None:
    job.code = {"train.py": "import os; os.write(1, bytes(range(256)) * 100)"}
    assert job.run().out == bytes(range(256)) * 100


def test_an_enormous_line_takes_little_memory(job: Job, tmp_path: Path) -> None:
    job.code = {"train.py": "import os\nfor _ in range(64): os.write(1, b'x' * (1 << 20))\n"}
    meter = tmp_path / "meter.py"
    meter.write_text(
        "import os, resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:]).returncode\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "os.write(2, b'PEAK %d' % peak)\n"
        "sys.exit(code)\n"
    )
    result = job.run((sys.executable, str(meter), *COMMAND))
    assert len(result.out) == 64 << 20
    assert int(result.log.rpartition("PEAK ")[2]) < 40 * 1024


def test_lines_of_both_streams_stay_whole(job: Job) -> None:
    job.code = {
        "train.py": (
            "import os\n"
            "for n in range(300):\n"
            "    os.write(1, b'Loss ='); os.write(2, b'warn'); os.write(1, b' %d' % n); os.write(2, b'ing\\n')\n"
            "    os.write(1, b';\\n')\n"
        )
    }
    lines = job.run().out.splitlines()
    assert [line for line in lines if line != b"warning"] == [b"Loss = %d;" % n for n in range(300)]
    assert len(lines) == 600


def test_an_unfinished_line_comes_before_the_end(job: Job) -> None:
    job.code = {"train.py": "import os, time; os.write(1, b'50%'); time.sleep(60)"}
    process = job.start()
    assert process.stdout is not None
    assert process.stdout.read(3) == b"50%"
    process.kill()
    process.communicate()


def test_a_daemon_does_not_keep_the_host(job: Job) -> None:
    job.code = {"train.py": "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid)"}
    start = time.monotonic()
    result = job.run()
    os.kill(int(result.out), signal.SIGKILL)
    assert time.monotonic() - start < 20
    assert result.code == 0
    assert "processes that it left behind" in result.log


def test_last_words_of_a_child_are_kept(job: Job) -> None:
    job.code = {"train.py": "import subprocess; subprocess.Popen('sleep 0.3; echo last', shell=True)"}
    assert job.run().out == b"last\n"


def test_sigterm_does_not_reach_a_script_under_process_1(job: Job) -> None:  # contract: G10
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this kernel grants no user and PID namespaces")
    job.code = {
        "train.py": (
            "import os, signal, time\n"
            "os.write(1, b'%d' % os.getppid())\n"
            "os.kill(1, signal.SIGTERM)\n"
            "time.sleep(0.5)\n"
            "os.write(1, b' alive\\n')\n"
        )
    }
    result = job.run((*unshare, *COMMAND))
    assert (result.code, result.out) == (0, b"1 alive\n")


# ------------------------------------------------------------------------- the program


def test_old_pythons_can_read_it() -> None:
    for path in TOOLKIT.glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_old_pythons_can_run_it(job: Job, version: str) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no Python {version} here")
    assert job.run(contract.toolkit_command(python)).probe["argv"] == ["train.py"]


def test_it_imports_little(job: Job) -> None:
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", *COMMAND[1:]],
        env=job.write(),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines() if "|" in line}
    assert "toolkit._trainer" in imported
    assert not imported & {
        "asyncio",
        "harness",
        "inspect",
        "logging",
        "pathlib",
        "site",
        "socket",
        "subprocess",
        "traceback",
        "typing",
    }
