"""Which modules a warm host imports beforehand, from the text of a script and of what lies beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.engines.warm._preload import modules


def found(tmp_path: Path, script: str, files: Mapping[str, str] | None = None) -> tuple[str, ...]:
    for name, text in {"train.py": script, **(files or {})}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return modules(tmp_path, "train.py")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import torch", ("torch",)),
        ("import torch, numpy as np", ("torch", "numpy")),
        ("import torchvision.models as models", ("torchvision.models",)),
        ("from torchvision.models import resnet18", ("torchvision.models",)),
        ("import os, json.decoder\nfrom collections import abc", ()),
        ("from __future__ import annotations", ()),
        ("import torch\nimport torch", ("torch",)),
        # Statements that run at import, wherever they stand.
        ("if True:\n    import torch\nelse:\n    import numpy", ("torch", "numpy")),
        ("try:\n    import apex\nexcept ImportError:\n    apex = None", ("apex",)),
        ("with open('x'):\n    import torch", ("torch",)),
        ("class A:\n    import torch", ("torch",)),
        ("for _ in ():\n    import torch", ("torch",)),
        # Only for type checkers.
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\nimport torch", ("torch",)),
        ("import typing\nif typing.TYPE_CHECKING:\n    import pandas\nelse:\n    import torch", ("torch",)),
        # In functions and where things failed: only what is known to take long.
        ("def main():\n    import torch\n    import little", ("torch",)),
        ("try:\n    import a\nexcept ImportError:\n    import tensorflow, b", ("a", "tensorflow")),
        # No Python.
        ("import torch\nthis is no python", ()),
        ("#!/bin/sh\nexec python3 x.py", ()),
        ("\0", ()),
        ("", ()),
    ],
)
def test_imports(tmp_path: Path, script: str, expected: tuple[str, ...]) -> None:
    assert found(tmp_path, script) == expected


def test_own_modules_are_followed_and_never_imported(tmp_path: Path) -> None:
    script = """
        import model
        from data import loader
        from nets.small import Net
        import torch
    """
    files = {
        "model.py": "import torchvision\nimport train",
        "data/__init__.py": "import numpy",
        "data/loader.py": "from . import helper\nfrom .. import outside",
        "data/helper.py": "import pandas",
        "nets/__init__.py": "",
        "nets/small.py": "import scipy",
        "nets/big.py": "import tensorflow",
    }
    assert found(tmp_path, script, files) == ("torchvision", "numpy", "pandas", "scipy", "torch")


def test_a_script_in_a_folder_sees_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/train.py").write_text("import near, far")
    (tmp_path / "src/near.py").write_text("import torch")
    (tmp_path / "far.py").write_text("import numpy")
    assert modules(tmp_path, "src/train.py") == ("torch", "numpy")


@pytest.mark.parametrize(
    "statement",
    [
        'os.environ["OMP_NUM_THREADS"] = "1"',
        'environ["MKL_NUM_THREADS"] = "1"',
        'os.environ.setdefault("HF_HOME", "/tmp/x")',
        'os.environ.update(KMP_AFFINITY="none")',
        'os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3"})',
        'os.putenv("OPENBLAS_NUM_THREADS", "1")',
    ],
)
def test_what_is_imported_after_a_variable_was_set_for_it_is_left_to_the_script(
    tmp_path: Path, statement: str
) -> None:
    script = f"import os\nfrom os import environ\nimport numpy\n{statement}\nimport torch"
    assert found(tmp_path, script) == ("numpy",)


@pytest.mark.parametrize(
    "statement",
    [
        'os.environ["CUDA_VISIBLE_DEVICES"] = "0"',  # read when CUDA starts, after the fork
        'os.environ["WANDB_MODE"] = "offline"',
        'os.environ[name] = "1"',
        'def later():\n    os.environ["OMP_NUM_THREADS"] = "1"',
        'x = os.environ["OMP_NUM_THREADS"]',
    ],
)
def test_other_statements_change_nothing(tmp_path: Path, statement: str) -> None:
    assert found(tmp_path, f"import os\n{statement}\nimport torch") == ("torch",)


def test_a_script_that_is_not_there_imports_nothing(tmp_path: Path) -> None:
    assert modules(tmp_path, "gone.py") == ()
    assert modules(tmp_path / "gone", "train.py") == ()


def test_heavy_imports_in_functions_after_a_variable_was_set(tmp_path: Path) -> None:
    script = 'import os\nos.environ["OMP_NUM_THREADS"] = "1"\ndef main():\n    import torch'
    assert found(tmp_path, script) == ()
