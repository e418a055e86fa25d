"""Options that several commands share, and what the shell completes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harness.errors import HarnessError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from harness.home import Home
    from harness.model import Spec
    from harness.store import Store

__all__ = ["complete_job", "job_argument", "json_option", "load_spec", "open_store", "spec_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def complete_job(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del ctx, param
    from click.shell_completion import CompletionItem

    from harness.home import Home
    from harness.store import Store

    try:
        with Store(Home.find()) as store:
            records = store.jobs(limit=200, name_contains=incomplete)
    except HarnessError:
        return []  # a shell that completes has nowhere to show an error
    return [
        CompletionItem(record.name, help=record.status)
        for record in records
        if record.name.startswith(incomplete)
    ]


job_argument = click.argument("job", shell_complete=complete_job)


def _gpus(ctx: click.Context, param: click.Parameter, value: str | None) -> str | int | None:
    del ctx, param
    return int(value) if value is not None and value.isdecimal() else value


def spec_options(command: Command) -> Command:
    """SPEC and the options that stand for keys of its `[local]` table."""
    from harness.model import ENGINES

    for decorate in reversed(
        [
            click.argument("spec", type=click.Path(path_type=Path), default="job.toml"),
            click.option("--engine", type=click.Choice(ENGINES), help="What runs the hosts (default: auto)."),
            click.option(
                "--gpus", callback=_gpus, metavar="N|all|none|I,J", help="GPUs of this machine to use."
            ),
            click.option(
                "--ranks",
                type=click.Choice(("cloud", "local")),
                help="Processes of a launcher: as many as in the cloud, or one a GPU here (default: local).",
            ),
            click.option("--job-name", metavar="NAME", help="The exact job name; else one is made."),
            click.option(
                "--set",
                "assignments",
                multiple=True,
                metavar="WORD=VALUE",
                help="Override a word of the spec, as in hyperparameters.lr=0.1; may be repeated.",
            ),
            click.option("--strict", is_flag=True, help="Refuse when a field would have no effect here."),
            click.option(
                "--strict-contract",
                is_flag=True,
                help="Turn on what exposes common bugs: late hosts, clutter, a full volume, ….",
            ),
            click.option("--offline", is_flag=True, help="Never talk to real S3."),
        ]
    ):
        command = decorate(command)
    return command


def load_spec(
    spec: Path,
    *,
    assignments: tuple[str, ...],
    job_name: str | None,
    strict: bool,
    offline: bool,
    strict_contract: bool = False,
    **local: Any,
) -> Spec:
    """The spec in that file with the command line's words over it."""
    from harness.spec import load, parse_set

    return load(
        spec,
        overrides=dict(parse_set(text) for text in assignments),
        local={
            **local,
            "strict": strict or None,
            "offline": offline or None,
            "strict_contract": strict_contract or None,
        },
        job_name=job_name,
    )


def open_store(home: Home | None = None) -> Store:
    """The store, after seeing that every unfinished job in it has a living supervisor."""
    from harness.home import Home
    from harness.store import Store

    home = home or Home.find()
    store = Store(home)
    if home.warm.is_dir():
        from harness.lifecycle import recover_warm

        recover_warm(home)
    # The life cycle takes a while to import, and mostly there is nothing to recover.
    if store.unfinished():
        from harness.lifecycle import recover

        recover(home, store)
    return store
