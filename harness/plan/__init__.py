"""Request + machine → how this machine runs it, and why so: hosts, GPUs, ranks, image, limits, network.

Making a plan changes nothing and reserves nothing; `make` raises when the machine can't run the request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.plan._sizes import parse as parse_size

if TYPE_CHECKING:
    from harness.plan._gpus import allowed_gpus
    from harness.plan._json import to_json
    from harness.plan._make import make
    from harness.plan._render import render
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_gpus": ("allowed_gpus",),
            "_json": ("to_json",),
            "_make": ("make",),
            "_render": ("render",),
        },
    )

__all__ = ["allowed_gpus", "make", "parse_size", "render", "to_json"]
