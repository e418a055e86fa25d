"""The sandbox's tests once more, as a user who owns nothing and may do nothing special."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
USER = 54321
"""A user id without an account, as containers often run under."""

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0, reason="only root can become another user; this run is one already"
    ),
    pytest.mark.slow,
]


def as_user(
    command: list[str], environment: dict[str, str], cwd: str = "/"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        user=USER,
        group=USER,
        extra_groups=[],
        env=environment,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def interpreter_for_all(environment: dict[str, str]) -> str:
    """One of our version that any user can run, and that finds pytest by `environment`."""
    version = "{}.{}".format(*sys.version_info[:2])
    tried = []
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        if not Path(candidate).exists():
            continue
        try:
            done = as_user([candidate, "-c", "import pytest, platformdirs"], environment)
        except PermissionError as error:
            tried.append(str(error))
            continue
        if done.returncode == 0:
            return candidate
        tried.append(done.stdout.strip().splitlines()[-1])
    pytest.skip(f"no Python {version} that another user can run: {'; '.join(tried)}")


@pytest.fixture
def copy() -> Iterator[Path]:
    """The repository's code and tests, in a place that another user can read and owns."""
    # Not in /tmp: a host has its own there.
    with tempfile.TemporaryDirectory(prefix="harness-user-", dir="/var/lib") as name:
        root = Path(name)
        root.chmod(0o755)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "harness", root / "harness", ignore=ignore)
        shutil.copytree(REPOSITORY / "tests/engines", root / "tests/engines", ignore=ignore)
        for file in ("pyproject.toml", "tests/conftest.py"):
            shutil.copyfile(REPOSITORY / file, root / file)
        (root / "tmp").mkdir()
        for path in (root, *root.rglob("*")):
            os.chown(path, USER, USER)
        yield root


@pytest.mark.parametrize("file", ["test_sandbox.py", "test_engine_contract.py", "test_enter.py"])
def test_the_sandbox_works_for_an_ordinary_user(copy: Path, file: str) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(copy / "tmp"),
        "TMPDIR": str(copy / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(copy), sysconfig.get_path("purelib")]),
    }
    python = interpreter_for_all(environment)

    done = as_user(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not docker", f"tests/engines/{file}"],
        environment,
        cwd=str(copy),
    )

    print(done.stdout[-6000:])
    assert done.returncode == 0
    assert " passed" in done.stdout
    # Nothing that it made belongs to anyone else.
    assert {path.lstat().st_uid for path in copy.rglob("*")} == {USER}
