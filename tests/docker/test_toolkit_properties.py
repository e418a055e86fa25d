"""Any legal job through AWS's toolkit and through ours: variables, arguments and launch command are equal.

Hypothesis makes the jobs; one container answers for both toolkits (`toolkit_server.py`). What AWS's does
that nobody would want is in docs/toolkit-parity.md; here it is simply required of ours, too.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import harness.contract
from tests.conftest import lacks_docker
from tests.docker import toolkit_server

pytestmark = [pytest.mark.docker, pytest.mark.slow]

TOOLKIT = Path(harness.contract.__file__).parent / "toolkit"
Answer = dict[str, Any]
Ask = Callable[[dict[str, Any]], dict[str, Answer]]

HOSTS = [f"algo-{number}" for number in range(1, 13)]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """One container for all cases."""
    import docker

    client = docker.from_env()
    try:
        if not client.images.list(name="harness-pytorch"):
            lacks_docker("no image harness-pytorch: build it with `harness image build`")
    finally:
        client.close()
    words = ["docker", "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "python3"]
    words += ["--volume", f"{toolkit_server.__file__}:/parity/toolkit_server.py:ro"]
    words += ["--volume", f"{TOOLKIT}:/parity/toolkit:ro", "--env", "AWS_REGION=us-west-2"]
    words += ["--env", "SAGEMAKER_TRAINING_MODULE=sagemaker_pytorch_container.training:main"]
    words += ["--env", "TRAINING_JOB_NAME=the-job", "--env", "LC_ALL=C.UTF-8"]
    words += ["harness-pytorch", "/parity/toolkit_server.py"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        to, back = server.stdin, server.stdout

        def answer(case: dict[str, Any]) -> dict[str, Answer]:
            print(json.dumps(case), file=to, flush=True)
            line = back.readline()
            assert line, "the container has ended"
            found: dict[str, Answer] = json.loads(line)
            return found

        yield answer
        to.close()


# -------------------------------------------------------------------------------- the jobs

# The API's `.*` leaves out newlines only; a surrogate can't be sent at all.
characters = st.characters(codec="utf-8", exclude_characters="\n\x00")
words = st.one_of(
    st.text(characters, max_size=12),
    st.sampled_from(["", " ", "'", '"', "\\", "$HOME", "`id`", "a;b", "*", "é中", "--lr", "-", "x" * 2500]),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    words,
)
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
values = st.one_of(
    words,
    nested.map(json.dumps),
    nested.map(lambda value: json.dumps(value, ensure_ascii=False)),
    st.sampled_from(["true", "True", "null", "NaN", "007", "1e3", "1_000", "-Infinity", "[", "{}", '"a"']),
).filter(lambda text: len(text) <= 2500)
# Small, so that names differ only in case now and then; "=" is told apart in the fixed cases.
names = st.one_of(
    st.text(st.sampled_from("aAbB-._ é"), min_size=1, max_size=3),
    st.text(characters, max_size=8).filter(lambda name: "=" not in name),
).filter(lambda name: not name.startswith("sagemaker_"))

switches = st.sampled_from(
    [
        {},
        {"sagemaker_torch_distributed_enabled": "true"},
        {"sagemaker_pytorch_ddp_enabled": "true"},
        {"sagemaker_distributed_dataparallel_enabled": "true"},
        {"sagemaker_mpi_enabled": "true"},
        {"sagemaker_pytorch_xla_multi_worker_enabled": "true"},
        {"sagemaker_parameter_server_enabled": "true"},
        {"sagemaker_mpi_enabled": "true", "sagemaker_torch_distributed_enabled": "true"},
        {"sagemaker_torch_distributed_enabled": "false", "sagemaker_mpi_enabled": "1"},
        {"sagemaker_mpi_enabled": "False"},
    ]
)
mpi_options = st.lists(
    st.sampled_from(
        ["-x", "A=b", "--NCCL_DEBUG=WARN", "--NCCL_DEBUG", "VERSION", "--NCCL=TRACE", "-verbose", "--", "é$"]
    ),
    max_size=4,
).map(" ".join)
settings_of_launchers = st.fixed_dictionaries(
    {},
    optional={
        "sagemaker_mpi_num_of_processes_per_host": st.sampled_from(
            ["1", "2", "8", "0", "null", '"2"', "1.5"]
        ),
        "sagemaker_mpi_num_processes": st.sampled_from(["3", "0", "null", '"5"']),
        "sagemaker_mpi_custom_mpi_options": mpi_options.map(json.dumps) | st.sampled_from(["", "5", "-h"]),
        "sagemaker_distributed_dataparallel_custom_mpi_options": mpi_options,
        "sagemaker_instance_type": st.sampled_from(
            ['"ml.p4d.24xlarge"', "", "null", "[1]", '"ml.c5.xlarge"']
        ),
        "sagemaker_toolkit_native_launcher_enabled": st.sampled_from(["true", "false"]),
        "sagemaker_distribution_instance_groups": st.sampled_from(
            ['["one"]', '["two"]', "[]", '["one","two"]']
        ),
        "sagemaker_job_name": st.sampled_from(['"j"', "j"]),
        "sagemaker_container_log_level": st.sampled_from(["10", "20", "30"]),
        "mp_parameters": st.sampled_from(
            ["{}", '{"partitions":2}', '{"ddp_dist_backend":"nccl"}', "", '{"ddp_dist_backend":"auto"}']
        ),
    },
)
modes = st.sampled_from(["File", "Pipe", "FastFile"])
channels = st.dictionaries(
    st.text(st.sampled_from("abAB.-_01"), min_size=1, max_size=6),
    st.fixed_dictionaries(
        {"TrainingInputMode": modes, "S3DistributionType": st.just("FullyReplicated")},
        optional={"ContentType": words, "RecordWrapperType": st.sampled_from(["None", "RecordIO"])},
    ),
    max_size=3,
)
types = st.sampled_from(
    ["ml.c5.xlarge", "ml.p4d.24xlarge", "ml.g4dn.12xlarge", "ml.p3.16xlarge", "ml.p5e.48xlarge"]
)


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    """resourceconfig.json: one or two groups, hosts in any order, seen by any of them (contract: C8–C12)."""
    hosts = draw(st.permutations(HOSTS[: draw(st.sampled_from([1, 2, 3, 12]))]))
    cut = draw(st.integers(0, len(hosts) - 1)) if draw(st.booleans()) else 0
    groups = [
        {"instance_group_name": name, "instance_type": draw(types), "hosts": part}
        for name, part in (("one", hosts[cut:]), ("two", hosts[:cut]))
        if part
    ]
    own = draw(st.sampled_from(groups))
    config: dict[str, Any] = {"current_host": draw(st.sampled_from(own["hosts"])), "hosts": sorted(hosts)}
    if draw(st.booleans()) or draw(st.booleans()):
        config |= {
            "current_instance_type": own["instance_type"],
            "current_group_name": own["instance_group_name"],
            "instance_groups": groups,
            "network_interface_name": draw(st.sampled_from(["eth0", "ens5"])),
        }
    return config


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """A whole case."""
    kind = draw(st.sampled_from(["train.py"] * 6 + ["run.sh", "start"]))
    hyperparameters = {
        **draw(st.dictionaries(names, values, max_size=5)),
        **draw(switches),
        **draw(settings_of_launchers),
        "sagemaker_program": draw(st.sampled_from([kind, json.dumps(kind)])),
        "sagemaker_submit_directory": draw(st.sampled_from(['"s3://b/source.tar.gz"', "/opt/ml/code"])),
    }
    return {
        "code": [kind],
        "hyperparameters": hyperparameters,
        "inputdataconfig": draw(channels),
        "resourceconfig": draw(clusters()),
        "gpus": draw(st.sampled_from([0, 1, 8])),
        "xla": draw(st.booleans()),
        "programs": draw(st.lists(st.sampled_from(["smddprun", "smddpmprun", "torchrun"]), unique=True)),
        "environment": draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "RUN_NEURON_PARALLEL_COMPILE": st.sampled_from(["0", "1"]),
                    "AWS_ACCESS_KEY_ID": st.just("AKIA"),
                    "AWS_DEFAULT_REGION": st.just("eu-west-1"),
                    "SM_HP_MP_PARAMETERS": st.just('{"partitions":1}'),
                    "SM_STUDIO_LOCAL_MODE": st.sampled_from(["true", "False"]),
                    "USE_SMDEBUG": st.just("0"),
                    "SAGEMAKER_TRAINING_MODULE": st.just(""),
                },
            )
        ),
    }


# -------------------------------------------------------------------------- the comparison


def comparable(answer: Answer) -> Answer:
    """Without what the two may differ in, each with its reason."""
    found = dict(answer)
    if "environment" in found:
        environment = dict(found["environment"])
        # The same folders; where the toolkit itself lies is no matter of the script's.
        environment["PYTHONPATH"] = sorted(
            {path for path in environment.get("PYTHONPATH", "").split(":") if path != "/parity"}
        )
        # PyTorch's own launcher picks a port here, where hosts of several jobs share one network.
        found["environment"] = environment
    if "words" in found:
        found["words"] = without_gethostname(found["words"])
    if str(found.get("failure", "")).startswith(("Framework Error", "SMTrainingCompiler Error")):
        # A crash of the toolkit itself: its exit code counts, and what kind of error it was.
        found["failure"] = found["failure"].splitlines()[0]
    return found


def without_gethostname(found: list[str]) -> list[str]:
    """Without the library that AWS's image gives to mpirun's ranks (contract: A20, H28)."""
    for number, word in enumerate(found):
        if word.startswith("LD_PRELOAD="):
            return [*found[: number - 1], *found[number + 1 :]]
    return found


@settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(case=jobs())
def test_any_job(ask: Ask, case: dict[str, Any]) -> None:  # contract: D15–D31, H9–H15, H18, H19, H23, H24
    answers = ask(case)
    assert comparable(answers["ours"]) == comparable(answers["aws"])
