"""`%harness` and `%%harness`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.model import Spec
    from harness.notebook._job import Job

__all__ = ["COMMAND", "load_ipython_extension", "magic", "unload_ipython_extension"]

_HELP = """\
%harness run [SPEC] [OPTIONS]     run the job of a spec (default: job.toml), shown live; gives back the job
%%harness [SPEC] [OPTIONS]        the same with the cell as the entry point; without SPEC the cell is all there is
%harness attach JOB               show a job that runs already, live
%harness COMMAND …                any other command of the command line: jobs, plan, logs, metrics, why, stop…

An interrupt of the kernel (■) stops the job as SageMaker does, a second one kills it. A restart of the kernel
leaves it running: `%harness attach` finds it again.

"""


def _options() -> list[click.Parameter]:
    """Those of `harness run`, as far as they make sense in a cell."""
    from harness.model import ENGINES

    return [
        click.Argument(["spec"], type=click.Path(path_type=Path), required=False),
        click.Option(["--engine"], type=click.Choice(ENGINES), help="What runs the hosts."),
        click.Option(["--gpus"], metavar="N|all|none|I,J", help="GPUs of this machine to use."),
        click.Option(
            ["--ranks"],
            type=click.Choice(("cloud", "local")),
            help="Processes of a launcher: as many as in the cloud, or one a GPU here.",
        ),
        click.Option(["--job-name"], metavar="NAME", help="The exact job name; else one is made."),
        click.Option(
            ["--set", "assignments"],
            multiple=True,
            metavar="WORD=VALUE",
            help="Override a word of the spec, as in hyperparameters.lr=0.1; may be repeated.",
        ),
        click.Option(["--strict"], is_flag=True, help="Refuse when a field would have no effect here."),
        click.Option(["--strict-contract"], is_flag=True, help="Turn on what exposes common bugs."),
        click.Option(["--offline"], is_flag=True, help="Never talk to real S3."),
        click.Option(["--warm/--no-warm"], default=None, help="Keep the hosts prepared for the next run."),
        click.Option(
            ["--stop-grace"],
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="Time between SIGTERM and SIGKILL.",
        ),
        click.Option(["-d", "--detach"], is_flag=True, help="Return when the job is started."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Show nothing while it runs."),
        click.Option(["--out"], metavar="NAME", help="Assign the job to this variable, too."),
    ]


COMMAND = click.Command(
    "%harness run",
    params=_options(),
    context_settings={"help_option_names": ["-h", "--help"]},
    add_help_option=True,
)


def magic(line: str, cell: str | None = None) -> Any:
    """Run training jobs on this machine from a notebook; `%harness` alone tells how."""
    try:
        words = shlex.split(line)
        if cell is not None:
            return _run(words[1:] if words[:1] == ["run"] else words, cell)
        if not words or words[0] in ("-h", "--help", "help"):
            print(_HELP + COMMAND.get_help(click.Context(COMMAND, info_name="%harness run")))
            return None
        if words[0] == "run":
            return _run(words[1:], None)
        if words[0] == "attach":
            return _attach(words[1:])
        return _command_line(words)
    except ValueError as error:
        _tell(UsageError(f"{line!r} can't be read: {error}"))
    except click.ClickException as error:
        _tell(UsageError(error.format_message()))
    except HarnessError as error:
        _tell(error)


def _tell(error: HarnessError) -> NoReturn:
    """Raise it so that IPython shows one sentence instead of a traceback of ours."""
    sentence = f"{type(error).__name__}: {error}"
    error._render_traceback_ = lambda: [sentence]  # type: ignore[attr-defined]
    raise error from None


def _run(words: Sequence[str], cell: str | None) -> Job | None:
    from harness.notebook._cell import compiled
    from harness.notebook._live import interruptible, shell
    from harness.spec import load, parse_set

    with COMMAND.make_context("%harness run", list(words), resilient_parsing=False) as context:
        given = dict(context.params)
    spec: Path | None = given.pop("spec")
    overrides = dict(parse_set(text) for text in given.pop("assignments"))
    detach, quiet, out = given.pop("detach"), given.pop("quiet"), given.pop("out")
    job_name = given.pop("job_name")
    if out is not None and not out.isidentifier():
        raise UsageError(f"--out {out!r}: a variable's name is wanted")
    gpus = given["gpus"]
    local = {
        **given,
        "gpus": int(gpus) if gpus is not None and gpus.isdecimal() else gpus,
        "strict": given["strict"] or None,
        "strict_contract": given["strict_contract"] or None,
        "offline": given["offline"] or None,
    }
    with interruptible() as interrupts:
        if cell is None:
            loaded = load(spec or Path("job.toml"), overrides=overrides, local=local, job_name=job_name)
            job = _submit(loaded, interrupts.begin)
        else:
            with compiled(cell, spec, overrides=overrides, local=local, job_name=job_name) as loaded:
                job = _submit(loaded, interrupts.begin)
        if out is not None:
            shell().user_ns[out] = job
        return _attend(job, interrupts, detach=detach, quiet=quiet)


def _submit(spec: Spec, accepting: Any) -> Job:
    from harness.home import Home
    from harness.notebook._job import Job
    from harness.targets import local

    home = Home.find()
    return Job(local.submit(spec, home=home, accepting=accepting).name, home=home)


def _attend(job: Job, interrupts: Any, *, detach: bool, quiet: bool) -> Job:
    from harness.notebook._live import attend

    if detach and not interrupts.count:
        print(f"started {job.name}; %harness attach {job.name} shows it")
        return job
    return attend(job, interrupts, quiet=quiet)


def _attach(words: Sequence[str]) -> Job:
    from harness.notebook._job import Job

    if len(words) != 1:
        raise UsageError("%harness attach wants one job's name: see %harness jobs")
    return Job(words[0]).watch()


def _command_line(words: Sequence[str]) -> None:
    """Any other command, in a process of its own; what it prints is printed here."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    errors: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    reader = threading.Thread(target=_collect, args=(process.stderr, errors))
    reader.start()
    try:
        for text in process.stdout:
            sys.stdout.write(text)
    finally:
        # An interrupt reaches the whole process group, so the command ends by itself.
        code = process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    told = "".join(errors).strip()
    if code == 0:
        if told:
            print(told, file=sys.stderr)
        return
    sentence = told.removeprefix("error: ") or f"harness {words[0]} ended with exit code {code}"
    error = UsageError if code == 2 else HarnessError
    raise error(sentence)


def _collect(stream: IO[str], into: list[str]) -> None:
    into.extend(stream)


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext harness`"""
    shell.register_magic_function(magic, "line_cell", "harness")


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext harness`"""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("harness", None)
