"""What makes a warm host unfit for a job, and what doesn't; how a job's tree gets into one and out again."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from harness.engines.warm._match import difference, fingerprint, start_environment
from harness.engines.warm._swap import give_back, lend
from harness.model import Gpu, HostLaunch, Mount

GPU = Gpu(index=0, uuid="GPU-0", name="x", memory_bytes=1)
DATA = PurePosixPath("/opt/ml/input/data")


@pytest.fixture
def launch(tmp_path: Path) -> HostLaunch:
    host = tmp_path / "jobs/a/hosts/algo-1"
    (host / "ml/code").mkdir(parents=True)
    (host / "ml/code/requirements.txt").write_text("tqdm\n")
    (host / "scratch").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/one").write_text("1")
    return HostLaunch(
        job_name="a",
        host="algo-1",
        hosts=("algo-1",),
        hostname="ip-10-0-1-2.us-east-1.compute.internal",
        image="mine",
        entrypoint=None,
        command=("train",),
        environment={"TRAINING_JOB_NAME": "a", "OMP_NUM_THREADS": "2", "MINE": "1"},
        ml=host / "ml",
        mounts=(Mount(source=tmp_path / "data", target=DATA / "training", mode="overlay"),),
        scratch=host / "scratch",
        gpus=(GPU,),
        shm_bytes=1 << 20,
    )


def told(
    before: HostLaunch,
    after: HostLaunch,
    meanwhile: Callable[[], object] = lambda: None,
    *,
    old: dict[str, Any] | None = None,
    new: dict[str, Any] | None = None,
) -> str | None:
    standard: dict[str, Any] = {
        "engine": "docker",
        "surroundings": {"image": "sha256:1"},
        "preload": ["torch"],
    }
    first = fingerprint([before], **{**standard, **(old or {})})
    meanwhile()
    return difference(first, fingerprint([after], **{**standard, **(new or {})}))


def test_the_same_launch_fits(launch: HostLaunch) -> None:
    assert told(launch, launch) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": "other"}, "the image name changed"),
        ({"command": ("train", "--fast")}, "the command changed"),
        ({"entrypoint": ("sh",)}, "the command changed"),
        ({"hostname": "ip-10-0-1-3.eu-west-1.compute.internal"}, "the job's hosts changed"),
        ({"host": "algo-2"}, "the job's hosts changed"),
        ({"gpus": ()}, "the job's GPUs changed"),
        ({"gpus": (dataclasses.replace(GPU, uuid="GPU-1"),)}, "the job's GPUs changed"),
        ({"shm_bytes": 1}, "the size of /dev/shm changed"),
        ({"memory_bytes": 1}, "the memory limit changed"),
        ({"network_isolated": True}, "the network isolation changed"),
        ({"network_interface": "lo"}, "the network interface changed"),
        ({"python": "/usr/bin/python3"}, "the interpreter changed"),
        ({"mounts": ()}, "/opt/ml/input/data/training went"),
        ({"environment": {"OMP_NUM_THREADS": "4"}}, "OMP_NUM_THREADS in the environment changed"),
        (
            {"environment": {"PYTHONHASHSEED": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "2"}},
            "LC_ALL, PYTHONHASHSEED in the environment changed",
        ),
        ({"prepend": {"PYTHONPATH": "/run/x"}}, "what the debugger needs changed"),
    ],
)
def test_what_a_running_host_can_not_change(
    launch: HostLaunch, changes: dict[str, Any], sentence: str
) -> None:
    after = dataclasses.replace(launch, **changes)
    assert told(launch, after) == f"{sentence} since the warm host was made"


@pytest.mark.parametrize(
    "changes",
    [
        {"job_name": "b"},
        {"environment": {"TRAINING_JOB_NAME": "b", "OMP_NUM_THREADS": "2", "MINE": "2", "NEW": "x"}},
    ],
)
def test_what_comes_with_each_run(launch: HostLaunch, changes: dict[str, Any]) -> None:
    assert told(launch, dataclasses.replace(launch, **changes)) is None


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        ({"engine": "sandbox"}, "the engine changed"),
        ({"surroundings": {"image": "sha256:2"}}, "the image changed"),
        (
            {"preload": ["torch", "pandas"]},
            "what the script imports changed (pandas came)",
        ),
        ({"preload": ["pandas"]}, "what the script imports changed (pandas came; torch went)"),
    ],
)
def test_what_no_launch_tells(launch: HostLaunch, new: dict[str, Any], sentence: str) -> None:
    assert told(launch, launch, new=new) == f"{sentence} since the warm host was made"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda tmp: (tmp / "jobs/a/hosts/algo-1/ml/code/requirements.txt").write_text("numpy"),
            "requirements.txt",
        ),
        (lambda tmp: (tmp / "jobs/a/hosts/algo-1/ml/code/requirements.txt").unlink(), "requirements.txt"),
        (lambda tmp: (tmp / "data/two").write_text("2"), "the files of /opt/ml/input/data/training"),
        (lambda tmp: (tmp / "data/one").unlink(), "the files of /opt/ml/input/data/training"),
        (
            lambda tmp: ((tmp / "new").write_text("3"), (tmp / "new").rename(tmp / "data/one")),
            "the files of /opt/ml/input/data/training",
        ),
    ],
)
def test_files_that_a_running_host_would_not_see(
    tmp_path: Path, launch: HostLaunch, change: Callable[[Path], object], sentence: str
) -> None:
    assert (
        told(launch, launch, lambda: change(tmp_path)) == f"{sentence} changed since the warm host was made"
    )


def test_files_that_it_sees(tmp_path: Path, launch: HostLaunch) -> None:
    def meanwhile() -> None:
        with (tmp_path / "data/one").open("a") as file:
            file.write("more")
        (launch.ml / "code/train.py").write_text("print(1)")

    assert told(launch, launch, meanwhile) is None


def test_a_directory_of_the_job_s_own_is_never_another(tmp_path: Path, launch: HostLaunch) -> None:
    def with_checkpoints(job: str) -> HostLaunch:
        host = tmp_path / f"jobs/{job}/hosts/algo-1"
        (host / "checkpoints").mkdir(parents=True, exist_ok=True)
        (host / "ml").mkdir(exist_ok=True)
        mount = Mount(source=host / "checkpoints", target=PurePosixPath("/checkpoints"), mode="rw")
        return dataclasses.replace(launch, job_name=job, ml=host / "ml", mounts=(mount,))

    (tmp_path / "jobs/b/hosts/algo-1/ml/code").mkdir(parents=True)
    (tmp_path / "jobs/b/hosts/algo-1/ml/code/requirements.txt").write_text("tqdm\n")
    assert told(with_checkpoints("a"), with_checkpoints("b")) is None


def test_the_start_environment_is_what_interpreters_and_modules_read_when_they_start() -> None:
    names = (
        *(
            "PYTHONPATH",
            "LD_PRELOAD",
            "TORCHDYNAMO_DISABLE",
            "DGLBACKEND",
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "MALLOC_ARENA_MAX",
            "LC_ALL",
        ),
        *("LANG", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PATH", "HOME", "HF_HOME"),
    )
    others = ("TRAINING_JOB_NAME", "HOSTNAME", "AWS_REGION", "WANDB_MODE", "MY_OMP_X", "SM_HPS")
    assert set(start_environment(dict.fromkeys((*names, *others), "x"))) == set(names)


# ------------------------------------------------------------------------------------------- the swap


def make(root: Path, files: dict[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def content(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()
    }


FILES = {"code/train.py": "1", "input/config/x.json": "2", "model/deep/er/m": "3"}


def test_a_tree_goes_in_and_out(tmp_path: Path) -> None:
    tree, warm = make(tmp_path / "job/ml", FILES), make(tmp_path / "warm/ml", {"left/over": "x"})
    lend(tree, warm)
    assert content(warm) == FILES
    assert content(tree) == FILES, "seen where it always is"
    assert tree.is_symlink()
    (warm / "output").mkdir()
    (warm / "output/failure").write_text("why")
    give_back(tree)
    assert not tree.is_symlink()
    assert content(tree) == {**FILES, "output/failure": "why"}
    assert list(warm.iterdir()) == []
    assert [path.name for path in tree.parent.iterdir()] == ["ml"]


def test_mount_points_and_what_is_above_them_stay(tmp_path: Path) -> None:
    tree = make(tmp_path / "job/ml", {**FILES, "input/data/training-manifest": "m"})
    (tree / "input/data/training").mkdir()
    warm = make(tmp_path / "warm/ml", {})
    (warm / "input/data/training").mkdir(parents=True)
    above = [path.stat().st_ino for path in (warm, warm / "input", warm / "input/data/training")]
    points = [PurePosixPath("input/data/training")]
    for _ in range(2):
        lend(tree, warm, points)
        assert content(warm) == {**FILES, "input/data/training-manifest": "m"}
        (warm / "input/data/new").write_text("n")
        give_back(tree, points)
        assert content(tree) == {**FILES, "input/data/training-manifest": "m", "input/data/new": "n"}
        (tree / "input/data/new").unlink()
        assert above == [path.stat().st_ino for path in (warm, warm / "input", warm / "input/data/training")]
        assert (tree / "input/data/training").is_dir()


def test_modes_go_along(tmp_path: Path) -> None:
    tree, warm = make(tmp_path / "job/ml", FILES), make(tmp_path / "warm/ml", {})
    (tree / "input/data/c").mkdir(parents=True)
    (warm / "input/data/c").mkdir(parents=True)
    (tree / "code").chmod(0o555)
    (tree / "input/config").chmod(0o644)
    tree.chmod(0o751)
    points = [PurePosixPath("input/data/c")]
    lend(tree, warm, points)
    assert stat.S_IMODE(warm.stat().st_mode) == 0o751
    assert stat.S_IMODE((warm / "code").stat().st_mode) == 0o555
    assert stat.S_IMODE((warm / "input/config").stat().st_mode) == 0o644
    (warm / "model").chmod(0o500)
    give_back(tree, points)
    assert stat.S_IMODE((tree / "model").stat().st_mode) == 0o500
    assert stat.S_IMODE((tree / "code").stat().st_mode) == 0o555
    for path in ("model", "code", "input/config"):
        (tree / path).chmod(0o755)


def test_a_tree_whose_hosts_died_comes_back_without_knowing_what_was_mounted(tmp_path: Path) -> None:
    tree = make(tmp_path / "job/ml", FILES)
    (tree / "input/data/training").mkdir(parents=True)
    warm = make(tmp_path / "warm/ml", {})
    (warm / "input/data/training").mkdir(parents=True)
    lend(tree, warm, [PurePosixPath("input/data/training")])
    give_back(tree)
    assert content(tree) == FILES


def test_what_was_begun_can_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any step of either: `give_back` ends it."""
    real = Path.rename

    class _KilledError(Exception):
        pass

    for last in range(8):
        tree = make(tmp_path / f"{last}/job/ml", FILES)
        warm = make(tmp_path / f"{last}/warm/ml", {})
        steps = iter(range(100))

        def rename(self: Path, target: Path, steps: Any = steps, last: int = last) -> Path:
            if next(steps) == last:
                raise _KilledError
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            try:
                lend(tree, warm)
                give_back(tree)
            except _KilledError:
                pass
        give_back(tree)
        assert not tree.is_symlink()
        assert content(tree) == FILES, last


def test_a_tree_on_another_file_system_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if other.stat().st_dev == tmp_path.stat().st_dev or not os.access(other, os.W_OK):
        pytest.skip("there is only one file system")
    import tempfile

    tree = make(tmp_path / "job/ml", FILES)
    with tempfile.TemporaryDirectory(dir=other) as warm:
        with pytest.raises(OSError, match="cross-device"):
            lend(tree, Path(warm))
        give_back(tree)
        assert content(tree) == FILES
