"""The example: its data, its log, what it leaves behind, and that it resumes and learns."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.torch_children import Child, run, start, torchrun

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

TOP = Path(__file__).parents[2]
CODE = TOP / "code"
SCRIPT = CODE / "train_pytorch_smdataparallel_mnist.py"
JOB = tomllib.loads((TOP / "job.toml").read_text())

SEED_LINE = re.compile(
    r"Epoch : \[\d+\]\[\d+/\d+\] Train_Time = \d+\.\d{3} : \(\d+\.\d{3}\) , "
    r"Train_Speed = \d+\.\d{3} \(\d+\.\d{3}\), "
    r"Train_Loss = \d+\.\d{10} : \(\d+\.\d{4}\) , Train_Prec@1 = \d+\.\d{3} : \(\d+\.\d{3}\)"
)


def preprocess(output: Path) -> str:
    command = [sys.executable, "-W", "error", CODE / "preprocessing.py", "--output_dir", output]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The whole channel."""
    directory = tmp_path_factory.mktemp("digits")
    preprocess(directory)
    return directory


@pytest.fixture(scope="module")
def few_digits(digits, tmp_path_factory):
    """The channel with 16 + 4 images of each digit: an epoch of 160."""
    directory = tmp_path_factory.mktemp("few")
    for part, count in (("train", 16), ("validation", 4)):
        for folder in sorted((digits / part).iterdir()):
            (directory / part / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                shutil.copy(image, directory / part / folder.name)
    return directory


def places(root: Path, channel: Path) -> dict[str, str]:
    """SageMaker's variables for a job under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    return {
        "SM_CHANNEL_TRAINING": str(channel),
        "SM_MODEL_DIR": str(root / "model"),
        "SM_OUTPUT_DATA_DIR": str(root / "output/data"),
    }


def call(root: Path, **hyperparameters: object) -> str:
    """Code that runs the script with these hyperparameters, passed as the toolkit passes them (contract: D27)."""
    words = [word for key, value in sorted(hyperparameters.items()) for word in (f"--{key}", str(value))]
    words += ["--checkpoint_dir", str(root / "checkpoints")]
    return f"import runpy, sys; sys.argv = {[str(SCRIPT), *words]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"


def metrics(root: Path) -> dict:
    return json.loads((root / "output/data/metrics.json").read_text())


def test_every_digit_is_in_one_part(digits):
    parts = {
        part: {path.relative_to(digits / part) for path in (digits / part).rglob("*.png")}
        for part in ("train", "validation")
    }
    assert not parts["train"] & parts["validation"]
    assert len(parts["train"]) + len(parts["validation"]) == 1797
    for digit in range(10):
        held_out = sum(path.parent.name == str(digit) for path in parts["validation"])
        assert 34 <= held_out <= 37, "a fifth of each digit"


def test_preprocessing_twice_changes_nothing(digits):
    def state():
        return {path: path.stat().st_mtime_ns for path in digits.rglob("*")}

    before = state()
    assert "already there" in preprocess(digits)
    assert state() == before


def test_the_split_is_fixed_by_the_seed():
    split = runpy.run_path(str(CODE / "preprocessing.py"))["split"]
    labels = [n % 10 for n in range(200)]
    assert split(labels, 0.2, 1) == split(labels, 0.2, 1) != split(labels, 0.2, 2)


def test_the_log_has_the_seeds_lines_and_the_specs_metrics(few_digits, tmp_path):
    (out,), _ = run(
        call(tmp_path, epochs=1, image_size=8, print_freq=2), [places(tmp_path, few_digits)], tmp_path
    )
    lines = [line for line in out.splitlines() if "Train_Loss" in line]
    assert [re.search(r"\]\[(\d+/\d+)\]", line)[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert all(SEED_LINE.fullmatch(line) for line in lines), lines
    for definition in JOB["metric_definitions"]:
        found = re.findall(definition["Regex"], out)
        assert found, definition
        assert all(float(value) >= 0 for value in found)


def test_a_second_run_resumes_where_the_first_ended(few_digits, tmp_path):  # contract: F13
    environment = places(tmp_path, few_digits)
    run(call(tmp_path, epochs=1, image_size=8), [environment], tmp_path)
    (out,), _ = run(call(tmp_path, epochs=3, image_size=8), [environment], tmp_path)
    assert "at epoch 2" in out
    assert "Epoch : [1]" not in out
    assert [epoch["epoch"] for epoch in metrics(tmp_path)["epochs"]] == [1, 2, 3]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint.pth"]
    model = torch.load(tmp_path / "model/model.pth", weights_only=True)
    assert model["classifier.2.bias"].shape == (10,)


def wait_for(text: str, child: Child) -> None:
    end = time.monotonic() + 100
    while text not in child.out():
        assert child.process.is_alive(), child.err()
        assert time.monotonic() < end, child.out()
        time.sleep(0.02)


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_saves_and_ends_well(ranks, few_digits, tmp_path):
    """One rank gets the signal; all of them must leave together."""
    launched = torchrun(ranks) if ranks > 1 else [{}]
    environment = places(tmp_path, few_digits)
    children = start(
        call(tmp_path, epochs=10_000, image_size=8), [{**environment, **rank} for rank in launched], tmp_path
    )
    wait_for("Epoch : [2] Val", children[0])
    os.kill(children[-1].process.pid, signal.SIGTERM)
    for child in children:
        child.process.join(100)
    assert [child.process.exitcode for child in children] == [0] * ranks, [child.err() for child in children]
    stopped = int(re.search(r"Stopped in epoch (\d+)", children[0].out())[1])
    assert torch.load(tmp_path / "checkpoints/checkpoint.pth", weights_only=True)["epoch"] == stopped
    assert metrics(tmp_path)["world_size"] == ranks
    assert (tmp_path / "model/model.pth").exists()


def test_ranks_count_every_validation_image_once(few_digits, tmp_path):
    """Three ranks do not divide 40 images: a padded sampler would count some of them twice."""
    environment = places(tmp_path, few_digits)
    run(call(tmp_path, epochs=1, image_size=8), [{**environment, **rank} for rank in torchrun(3)], tmp_path)
    (epoch,) = metrics(tmp_path)["epochs"]
    assert epoch["val_prec1"] * 40 / 100 == pytest.approx(round(epoch["val_prec1"] * 40 / 100), abs=1e-6)


def test_without_a_channel_it_says_so(tmp_path):
    (child,) = start(call(tmp_path, epochs=1), [places(tmp_path, tmp_path / "none")], tmp_path)
    child.process.join(100)
    assert child.process.exitcode == 1
    assert "no channel `training`" in child.err()


def test_without_smdistributed_it_says_so_and_trains(few_digits, tmp_path):
    code = "import sys; sys.modules['smdistributed'] = None; " + call(tmp_path, epochs=1, image_size=8)
    (out,), _ = run(code, [places(tmp_path, few_digits)], tmp_path)
    assert "no smdistributed: using gloo" in out


@pytest.mark.slow
def test_it_learns_with_the_specs_hyperparameters(digits, tmp_path):
    run(call(tmp_path, **JOB["hyperparameters"]), [places(tmp_path, digits)], tmp_path)
    assert metrics(tmp_path)["epochs"][-1]["val_prec1"] >= 95
