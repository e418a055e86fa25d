"""`harness image`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import click

from harness.cli import _terminal
from harness.cli._options import json_option

__all__ = ["image"]


@click.group()
def image() -> None:
    """Build or list the images that stand in for SageMaker's training images."""


@image.command()
@click.option(
    "--base", metavar="IMAGE", help="An image with Python and PyTorch, or `debian` to make one here."
)
@click.option("--tag", metavar="NAME", help="What to call it (default: harness-pytorch).")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("--launchers", is_flag=True, help="Add what mpirun and smddprun need: sshd, Open MPI, mpi4py.")
@json_option
def build(base: str | None, tag: str | None, no_cache: bool, launchers: bool, as_json: bool) -> None:
    """Build the training image: a base with PyTorch, AWS's toolkits, the smdistributed stand-in."""
    from harness.engines import images

    screen = _terminal.Screen(sys.stderr if as_json else sys.stdout)
    try:
        built = images.build(
            tag=tag or images.DEFAULT_TAG,
            base=base,
            progress=_progress(screen),
            no_cache=no_cache,
            launchers=launchers,
        )
    finally:
        screen.status("")
    if as_json:
        _terminal.emit_json(dataclasses.asdict(built))
        return
    made = built.image
    screen.write(
        f"{screen.style('built', 'green')} {built.tag} in {_terminal.duration(built.seconds)}: "
        f"PyTorch {made.torch}, Python {made.python}, {_terminal.size(made.size_bytes)}",
        f'  in job.toml: [local.images]  "763104351884.dkr.ecr.*/pytorch-training:*" = "{built.tag}"',
    )


def _progress(screen: _terminal.Screen) -> Callable[[str], None]:
    """Steps as lines, what happens inside a step below them; every line where there is no terminal."""

    def show(line: str) -> None:
        if not screen.is_terminal or line.startswith(("Step ", "base ", "pulling ")):
            screen.write(line)
        else:
            screen.status(f"  {line.strip()}")

    return show


@image.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the training images on this machine, newest first."""
    from harness.engines import images

    found = images.list_images()
    if as_json:
        _terminal.emit_json({"images": [dataclasses.asdict(each) for each in found]})
        return
    screen = _terminal.Screen(sys.stdout)
    if not found:
        screen.write("there are no training images; `harness image build` makes one")
        return
    head, *rows = _terminal.table(
        ("IMAGE", "PYTORCH", "PYTHON", "SIZE", "BASE"),
        [
            (
                ", ".join(each.tags) or each.id[:19],
                each.torch or "?",
                each.python or "?",
                _terminal.size(each.size_bytes),
                each.base or "?",
            )
            for each in found
        ],
        right=(3,),
    )
    screen.write(screen.style(head, "bold"), *rows)
