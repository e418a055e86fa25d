"""The image `harness image build` makes: its `train` is AWS's, its labels are true, a build is repeatable."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import docker
import pytest

from harness import contract
from harness.engines import images
from harness.errors import EngineError
from tests.conftest import lacks_docker

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def image() -> images.LocalImage:
    found = images.inspect(images.DEFAULT_TAG)
    if found is None:
        lacks_docker(
            f"there is no image {images.DEFAULT_TAG}: `harness image build`, or with `--base debian`"
        )
    assert found is not None
    return found


@pytest.fixture
def tag():
    name = f"imgtest-{uuid.uuid4().hex[:8]}"
    yield name
    subprocess.run(["docker", "rmi", "-f", name], capture_output=True, check=False)


def sh(image: images.LocalImage, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["docker", "run", "--rm", *options, image.id, "sh", "-c", command]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def test_train_is_the_toolkit(image):  # contract: A21
    ran = sh(image, "train")
    assert ran.returncode == 1
    assert "Imported framework sagemaker_pytorch_container.training" in ran.stdout + ran.stderr


def test_the_environment_is_the_sandboxs(image):  # contract: D13
    out = sh(image, "env").stdout.splitlines()
    assert {f"{name}={value}" for name, value in contract.image_environment().items()} <= set(out)
    leaked = [
        line for line in out if line.upper().startswith(("SSL_CERT", "REQUESTS_CA", "PIP_", "HTTP", "SM_"))
    ]
    assert not leaked, "the build's own settings, seen by the script"


def test_the_labels_are_true(image):
    probe = "import json, platform, torch; print(json.dumps([torch.__version__, platform.python_version()]))"
    assert json.loads(sh(image, f"python -c '{probe}'").stdout) == [image.torch, image.python]
    assert image in images.list_images()


def test_smddp_is_found_in_every_directory(image):
    code = "import smdistributed.dataparallel.torch.torch_smddp as m; print(m.__file__)"
    ran = sh(image, f"cd /tmp && python -W error -c '{code}'")
    assert ran.stdout.startswith("/usr/local/share/harness/standins/"), ran.stderr


def test_the_example_learns_under_awss_toolkit(image, tmp_path):
    """A hand-made /opt/ml, as SageMaker lays it out: the toolkit, the script and the stand-in together."""
    pytest.importorskip("sklearn")
    top = Path(__file__).parents[2]
    ml = tmp_path / "ml"
    for directory in ("input/config", "input/data", "model", "output/data", "code"):
        (ml / directory).mkdir(parents=True)
    script = "train_pytorch_smdataparallel_mnist.py"
    (ml / "code" / script).write_text((top / "code" / script).read_text())
    made = [
        sys.executable,
        top / "code/preprocessing.py",
        "--output_dir",
        ml / "input/data/training",
    ]
    subprocess.run(made, check=True, capture_output=True)
    files = {
        "hyperparameters": {"image_size": "8", "epochs": "2", "sagemaker_program": f'"{script}"'},
        "inputdataconfig": {"training": {"TrainingInputMode": "File"}},
        "resourceconfig": {
            "current_host": "algo-1",
            "hosts": ["algo-1"],
            "current_instance_type": "ml.p4d.24xlarge",
            "current_group_name": "homogeneousCluster",
            "instance_groups": [
                {
                    "instance_group_name": "homogeneousCluster",
                    "instance_type": "ml.p4d.24xlarge",
                    "hosts": ["algo-1"],
                }
            ],
            "network_interface_name": "eth0",
        },
    }
    for name, content in files.items():
        (ml / f"input/config/{name}.json").write_text(json.dumps(content))
    ran = sh(
        image,
        f"train; code=$?; chown -R {tmp_path.stat().st_uid} /opt/ml; exit $code",
        "--add-host=algo-1:127.0.0.1",
        f"--volume={ml}:/opt/ml",
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "stands in for AWS's SMDDP" in ran.stdout + ran.stderr
    assert "Epoch : [2] Val_Loss" in ran.stdout
    assert (ml / "model/model.pth").exists()
    assert len(json.loads((ml / "output/data/metrics.json").read_text())["epochs"]) == 2


def test_a_second_build_changes_nothing(image, tag):
    if image.base is None or images.inspect(image.base) is None:
        pytest.skip(f"the base {image.base} of {images.DEFAULT_TAG} is not here")
    said: list[str] = []
    first = images.build(base=image.base, tag=tag, progress=said.append)
    second = images.build(base=image.base, tag=tag, progress=lambda _: None)
    assert first.image.id == second.image.id
    assert first.image.torch == image.torch
    assert any(line.startswith(("Step", "STEP")) for line in said)


def test_a_build_leaves_no_image_without_a_name(tag):
    client = docker.from_env()
    try:
        base = images.inspect(images.DEFAULT_TAG)
        if base is None:
            lacks_docker(f"there is no image {images.DEFAULT_TAG}")
        built = []
        for text in (b"one", b"two"):
            dockerfile = f"FROM {images.DEFAULT_TAG}\nCOPY file /file\n".encode()
            context = images.pack({"Dockerfile": dockerfile, "file": text})
            options = {"dockerfile": "Dockerfile", "tag": tag, "no_cache": True, "progress": lambda _: None}
            built.append(images.run_build(client, context, **options))
        assert images.inspect(built[0]) is None
        assert images.inspect(built[1]) is not None
        assert images.inspect(images.DEFAULT_TAG) == base
    finally:
        client.close()


def test_a_base_without_python_is_refused(tag, tmp_path):
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"))
    client = docker.from_env()
    client.api.import_image_from_file(str(empty), repository=tag, tag="base")
    try:
        with pytest.raises(EngineError, match="has no Python 3 that runs"):
            images.build(base=f"{tag}:base", tag=tag, progress=lambda _: None)
        left = client.containers.list(all=True, filters={"ancestor": f"{tag}:base"})
        assert not left, "the container that asked for its versions"
    finally:
        client.images.remove(f"{tag}:base", force=True)
        client.close()


def test_a_registry_that_cant_be_reached_is_one_clear_error(tag):
    with pytest.raises(EngineError, match=r"for want of the network.*--base debian"):
        images.build(base="registry.invalid/pytorch:1", tag=tag, progress=lambda _: None)
