"""Notebooks, executed by a real kernel: what is saved in them, and what an interrupt does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from harness.home import Home
from harness.store import Store
from harness.targets import local

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.filterwarnings("ignore")

LOAD = "%load_ext harness\nimport harness"
TRAIN = """\
import math, os, sys, time
for step in range(12):
    print(f"loss={math.exp(-step / 4):.3f};", flush=True)
    time.sleep(0.1)
print("<script>alert(1)</script>", sys.argv[1:])
open(os.environ["SM_MODEL_DIR"] + "/weights", "w").write("w")
"""
METRICS = """--set 'metric_definitions=[{Name="a<b>",Regex="loss=(.*?);"}]'"""
SLEEPS = """\
import time
print("it runs", flush=True)
time.sleep(600)
"""

Meanwhile = Callable[[Any, Home], Awaitable[None]]
Execute = Callable[..., list[Any]]


@pytest.fixture
def execute(tmp_path: Path, home: Path) -> Execute:
    """Execute cells in a kernel of this Python; the cells as they would be saved.

    The kernel's spec, its connection file and IPython's own files are the test's, nobody else's.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    kernels = tmp_path / "kernels"
    (kernels / "this").mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "this Python",
        "language": "python",
        "env": {
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
            "AWS_EC2_METADATA_DISABLED": "true",  # the SageMaker SDK looks for credentials when it is imported
        },
    }
    (kernels / "this" / "kernel.json").write_text(json.dumps(spec))

    def run(*sources: str, meanwhile: Meanwhile | None = None, cwd: Path = tmp_path) -> list[Any]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in sources])
        manager = AsyncKernelManager(
            kernel_name="this",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels)]),
            connection_file=str(tmp_path / "kernel.json"),
        )
        client = nbclient.NotebookClient(
            notebook, km=manager, timeout=120, allow_errors=True, resources={"metadata": {"path": str(cwd)}}
        )

        async def both() -> None:
            other = asyncio.create_task(meanwhile(manager, Home(home))) if meanwhile else None
            await client.async_execute(cleanup_kc=True)
            if other is not None:
                await other

        asyncio.run(both())
        nbformat.write(notebook, tmp_path / "executed.ipynb")
        return list(notebook.cells)

    return run


def shown(cell: Any) -> dict[str, str]:
    """The one rich output of the cell, by MIME type."""
    (output,) = [each for each in cell.outputs if each.output_type in ("display_data", "execute_result")]
    return dict(output.data)


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def error(cell: Any) -> str:
    """All that is shown of the error that the cell ended with."""
    (output,) = [each for each in cell.outputs if each.output_type == "error"]
    return "\n".join(output.traceback)


async def running(home: Home, text: str = "it runs") -> str:
    """The job whose log has that text, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in home.jobs.glob("*/logs/1/algo-1.log"):
            if text in path.read_text():
                return path.parents[2].name
        await asyncio.sleep(0.05)
    raise AssertionError(f"no job has printed {text!r}")


def test_a_cell_is_a_job(execute: Execute) -> None:
    _, cell, again, facts, nested = execute(
        LOAD,
        f"%%harness --out job --set hyperparameters.epochs=3 {METRICS}\n{TRAIN}",
        "job",
        "assert _.name == job.name\n"
        "job.status, job.secondary_status, sorted(job.artifacts), len(job.metrics()), job.metrics().names, "
        "job.describe()['TrainingJobStatus'], 'loss=1.000;' in job.logs(), len(job.logs(tail=2)), "
        "list(job.metrics().to_frame().columns)",
        "[job]",
    )
    for each in (cell, again):
        panel = shown(each)
        assert ">Completed</span>" in panel["text/html"]
        assert "data:image/png;base64," in panel["text/html"]
        assert "&lt;script&gt;alert(1)" in panel["text/html"]
        assert "a&lt;b&gt;" in panel["text/html"]
        assert "<script" not in panel["text/html"]
        assert ": Completed, " in panel["text/plain"]
        assert "loss=0.064;" in panel["text/plain"]
        assert "--epochs', '3'" in panel["text/plain"]
    assert not printed(cell)
    assert shown(facts)["text/plain"].replace("\n", "") == (
        "('Completed', 'Completed', ['model'], 12, ['a<b>'], 'Completed', True, 2,"
        " ['timestamp', 'name', 'host', 'value'])"
    )
    assert shown(nested)["text/plain"].startswith("[<Job cell-")


def test_a_spec_with_the_cell_in_its_entry_points_place(
    execute: Execute, write_spec: Callable[..., Path]
) -> None:
    spec = write_spec(
        'print("the file itself", epochs)',
        engine="sandbox",
        files={"helper.py": "VALUE = 'helped'", "requirements.txt": "", "package/data.txt": "beside"},
        hyperparameters={"epochs": 9},
    )
    for name in ("train.py", "package/inner.py"):
        path = spec.parent / "code" / name
        path.write_text("import sys; print('the file itself', sys.argv[1:])")
    code = "import helper, os, sys; print(helper.VALUE, sorted(os.listdir('/opt/ml/code')), sys.argv[1:])"
    _, whole, over, inner, bad, missing, raw = execute(
        LOAD,
        "%harness run job.toml --set epochs=1",
        f"%%harness job.toml --set epochs=2\n{code}",
        f"%%harness job.toml --set epochs=3 --set entry_point=package/inner.py\n{code}",
        "%harness run job.toml --set epoch=1",
        "%harness run nothere.toml",
        "%%harness request.json\nprint(1)",
        cwd=spec.parent,
    )
    assert "the file itself ['--epochs', '1']" in shown(whole)["text/plain"]
    names = "['helper.py', 'package', 'requirements.txt', 'train.py']"
    assert f"helped {names} ['--epochs', '2']" in shown(over)["text/plain"]
    assert "the file itself ['--epochs', '3']" in shown(inner)["text/plain"]
    assert (spec.parent / "code" / "train.py").read_text().startswith("import sys"), "files are left alone"
    assert error(bad).startswith("SpecError: job.toml: unknown key 'epoch' in the spec")
    assert error(missing) == "SpecError: the spec nothere.toml can't be read: No such file or directory"
    assert error(raw).startswith("UsageError: request.json is a raw request")


def test_a_failed_job_is_told_without_a_traceback_of_ours(execute: Execute) -> None:
    _, cell, status, why, unknown = execute(
        LOAD,
        '%%harness --set job_name=breaks\nlabels = [1]\nassert labels == [2], "the <b>labels</b> are wrong"',
        "_.status, harness.job('breaks').failure_reason.splitlines()[0]",
        "%harness why breaks",
        "%harness jobz",
    )
    assert not [each for each in cell.outputs if each.output_type == "error"]
    panel = shown(cell)
    assert "AssertionError: the &lt;b&gt;labels&lt;/b&gt; are wrong" in panel["text/html"]
    assert "train.py:2 raised AssertionError" in panel["text/plain"]
    assert "→    2  assert labels == [2]" in panel["text/plain"]
    assert shown(status)["text/plain"] == "('Failed', 'AlgorithmError: ExecuteUserScriptError:')"
    assert "train.py:2 raised AssertionError" in printed(why)
    assert error(unknown) == "UsageError: there is no command 'jobz': did you mean jobs?"


def test_an_interrupt_stops_the_job(execute: Execute, home: Path) -> None:
    async def interrupt(manager: Any, place: Home) -> None:
        await running(place)
        await manager.interrupt_kernel()

    _, cell, after = execute(
        LOAD, f"%%harness --out job --stop-grace 2\n{SLEEPS}", "job.status", meanwhile=interrupt
    )
    name = next(Home(home).jobs.iterdir()).name
    assert error(cell) == f"Interrupted: the job {name} is Stopped"
    panel = shown(cell)
    assert ">Stopped</span>" in panel["text/html"]
    assert "stopping as SageMaker does: SIGTERM, up to 2 s" in panel["text/plain"]
    assert shown(after)["text/plain"] == "'Stopped'"


def test_a_second_interrupt_kills_it(execute: Execute) -> None:
    async def interrupt_twice(manager: Any, place: Home) -> None:
        name = await running(place)
        await manager.interrupt_kernel()
        while True:
            with Store(place) as store:
                if store.summary(name).status == "Stopping":
                    break
            await asyncio.sleep(0.05)
        await manager.interrupt_kernel()

    began = time.monotonic()
    _, cell = execute(LOAD, f"%%harness\n{SLEEPS}", meanwhile=interrupt_twice)
    assert "interrupted again: killing the job" in shown(cell)["text/plain"]
    assert error(cell).endswith(" is Stopped")
    assert time.monotonic() - began < 100, "the grace of 120 s was not waited for"


def test_a_job_outlives_its_kernel(execute: Execute, home: Path) -> None:
    (_, started) = execute(LOAD, f"%%harness --detach --stop-grace 2\n{SLEEPS}")
    place = Home(home)
    name = asyncio.run(running(place))
    assert f"started {name}; %harness attach {name}" in printed(started)

    async def stop(_: Any, place: Home) -> None:
        await asyncio.sleep(2)
        local.stop(name, home=place)

    _, attached = execute(LOAD, f"%harness attach {name}", meanwhile=stop)
    assert ">Stopped</span>" in shown(attached)["text/html"]
    assert "│ it runs" in shown(attached)["text/plain"]


def test_an_estimator_in_a_notebook(execute: Execute, tmp_path: Path) -> None:
    pytest.importorskip("sagemaker")
    (tmp_path / "train.py").write_text('print("from the estimator")')
    fit = """
        from sagemaker.pytorch import PyTorch
        session = harness.sagemaker_session(engine="sandbox")
        estimator = PyTorch(entry_point="train.py", role="SageMakerRole", instance_type="ml.p4d.24xlarge",
                            instance_count=1, framework_version="1.13", py_version="py39",
                            sagemaker_session=session)
        estimator.fit()
    """
    _, cell, job = execute(LOAD, textwrap.dedent(fit), "harness.job(estimator.latest_training_job.name)")
    assert "from the estimator" in printed(cell)
    assert "Training job completed" in printed(cell)
    assert "1 × ml.p4d.24xlarge in the sandbox engine" in shown(job)["text/html"]


@pytest.mark.docker
def test_a_cell_in_docker(execute: Execute, docker_image: str) -> None:
    del docker_image
    _, cell = execute(
        LOAD, '%%harness --engine docker\nimport os; print("in-" + os.environ["SM_CURRENT_HOST"])'
    )
    assert "\nin-algo-1\n" in shown(cell)["text/html"]
    assert "in the docker engine" in shown(cell)["text/html"]


def test_cells_share_a_warm_host(execute: Execute, home: Path) -> None:
    """Their source is another directory's every time, and still the second finds the first one's host."""
    try:
        _, first, second, kinds = execute(
            LOAD,
            "%%harness --warm --out one\nprint('once')",
            "%%harness --warm --out two\nprint('again')",
            "one.record.result['warm']['reused'], two.record.result['warm']['reused']",
        )
        assert "cold: there was no warm host for it" in shown(first)["text/html"]
        assert "again" in shown(second)["text/html"]
        assert shown(kinds)["text/plain"] == "(False, True)", shown(second)["text/plain"]
        assert list((home / "cache" / "cells").iterdir()) == []
    finally:
        local.collect(home=Home(home))


def test_a_terminal_gets_lines(tmp_path: Path, home: Path) -> None:
    """IPython without a notebook: no HTML, no picture, each line once."""
    script = tmp_path / "session.ipy"
    script.write_text(f"{LOAD}\nget_ipython().run_cell_magic('harness', '', {TRAIN!r})\n")
    environment = {**os.environ, "HARNESS_HOME": str(home), "IPYTHONDIR": str(tmp_path / "ipython")}
    ran = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    assert ran.stdout.count("│ loss=1.000;") == 1
    assert (
        ran.stdout.index("Downloading")
        < ran.stdout.index("│ loss=1.000;")
        < ran.stdout.index(": Completed, ")
    )
    assert "<div" not in ran.stdout
