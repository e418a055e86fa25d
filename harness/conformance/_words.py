"""Small jobs for verifications and tests: what their specs say if nobody says otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from harness.model import JsonObject, Spec

__all__ = ["BUCKET", "Files", "aws_name", "lay_out", "training_spec"]

BUCKET: Final = "harness-verify"
"""Where outputs and checkpoints go, whatever a spec says."""
_ROLE: Final = "arn:aws:iam::111122223333:role/Verify"
_REGISTRY: Final = "111122223333.dkr.ecr.us-east-1.amazonaws.com"

Files = Mapping[str, "str | bytes"]
"""Relative path → content."""


def training_spec(
    image: str | None,
    words: Mapping[str, Any],
    *,
    channels: Mapping[str, Path | str],
    local: JsonObject | None = None,
) -> Spec:
    """A small job; `words` are those of `TrainingSpec`, and go before what is assumed here.

    Raises:
        SpecError: a word or a value is wrong.
    """
    from harness.spec import compile_table

    given = {name: value for name, value in words.items() if value is not None}
    return compile_table(
        {
            "name": "test",
            "role": _ROLE,
            "instance_type": "ml.m5.large",
            "instance_count": 1,
            "output_path": f"s3://{BUCKET}/output",
            "max_run": 600,
            **({"image_uri": aws_name(image)} if image else {}),
            **({"inputs": {name: str(place) for name, place in channels.items()}} if channels else {}),
            **given,
            **({"local": local} if local else {}),
        },
        origin="the test",
        base=Path.cwd(),
    )


def aws_name(image: str) -> str:
    """A name that AWS takes for the image: a local one gets a registry in front of it."""
    plain = re.sub(r"[^a-zA-Z0-9._/:@-]", "-", image)
    return plain if "/" in plain else f"{_REGISTRY}/{plain}"


def lay_out(root: Path, files: Files) -> Path:
    """A directory with these files."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root
