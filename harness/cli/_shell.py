"""`harness shell`, `harness exec` and `harness cp`."""

from __future__ import annotations

import os
import sys
import time
from typing import IO, TYPE_CHECKING, Final

import click

from harness.cli import _terminal
from harness.cli._options import job_argument, json_option, open_store
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.debugging import Standing
    from harness.engines.enter import Ended, Terminal

__all__ = ["cp", "exec", "shell"]

_KILLED: Final = 137

host_option = click.option("--host", metavar="NAME", help="Which host; default the first.")


@click.command()
@job_argument
@host_option
@click.option("--post-mortem", is_flag=True, help="In a new host, on what a job that failed left.")
@click.option("-c", "words", metavar="COMMAND", help="Run this command line of the shell instead.")
def shell(job: str, host: str | None, post_mortem: bool, words: str | None) -> int:
    """A shell in a running host of JOB: the script's environment, in the script's directory.

    Ctrl-C goes to the shell; leaving it leaves the job alone. Without a terminal the commands are read from
    standard input. The exit code is the shell's; 2 and 3 with an error on stderr are the harness's own.

    With --post-mortem, after a job failed or was stopped: a new host with the same image, mounts and
    environment, /opt/ml and /tmp as they were left. It goes away with the shell.
    """
    from harness.debugging import shell_command, stand

    open_store().close()
    with stand(job, host=host, post_mortem=post_mortem) as standing:
        argv, extra = shell_command(standing.job, standing.host, words)
        interactive = words is None and sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            _terminal.tell(_welcome(standing), kind="note")
        ended = _run(standing, argv, extra, _terminal_of_ours() if interactive else None)
    if interactive and post_mortem:
        _terminal.tell(
            f"the host is removed; what you changed stays in {standing.entry.launch.ml}", kind="note"
        )
    return ended.code


def _welcome(standing: Standing) -> str:
    name = f"{standing.host} of {standing.job}"
    if not standing.kept:
        return f"a shell in {name}; exit or Ctrl-D leaves it, and the job goes on"
    gpus = f"; GPU {', '.join(str(gpu.index) for gpu in standing.entry.launch.gpus)} may be in use by another job"
    left = (
        "/opt/ml and /tmp as they were" if standing.has_tmp else "/opt/ml as it was, not the warm run's /tmp"
    )
    return (
        f"a new host on what {name} left: {left}, channels mounted anew, none of the "
        f"script's processes{gpus if standing.entry.launch.gpus else ''}; exit or Ctrl-D removes it"
    )


class _Exec(click.Command):
    """An option that is the command's own, given without `--`, is told so: some would be taken for ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if "--" in words:
                raise
            shown = " ".join(words[1:])
            raise UsageError(
                f"{error.option_name} is no option of `harness exec`: if it is the command's, put -- before the "
                f"command, as in `harness exec {words[0]} -- {shown}`"
            ) from error


@click.command("exec", cls=_Exec)
@job_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@host_option
@click.option("-t", "--tty", is_flag=True, help="With a terminal of its own, as for vim or top.")
@json_option
def exec(  # noqa: A001 - the command is called so
    job: str, command: tuple[str, ...], host: str | None, tty: bool, as_json: bool
) -> int:
    """Run COMMAND in a running host of JOB, as the script would: `harness exec JOB -- nvidia-smi -L`.

    Standard input, output and error are the command's. The exit code is the command's as well, 127 when
    there is no such command, 126 when it can't be executed; 2 and 3 with an error on stderr are the harness's
    own. With --json the output is in the document.
    """
    from harness.debugging import stand

    if tty and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("-t needs a terminal, and standard input or output is none: leave it out")
    if tty and as_json:
        raise UsageError("-t and --json exclude each other: a terminal's output is no document")
    open_store().close()
    with stand(job, host=host) as standing:
        if as_json:
            return _run_for_json(standing, command)
        ended = _run(standing, command, {}, _terminal_of_ours() if tty else None)
    if ended.error is not None:
        _terminal.tell(f"{standing.host} of {job}: {ended.error}", kind="error")
    return ended.code


def _terminal_of_ours() -> Terminal:
    from harness.engines.enter import Terminal

    return Terminal()


def _run(
    standing: Standing, argv: tuple[str, ...], extra: dict[str, str], terminal: Terminal | None
) -> Ended:
    from harness.engines.enter import Ended, TerminatedError

    sys.stdout.flush()
    try:
        ended = standing.run(argv, terminal=terminal, extra=extra)
    except TerminatedError as error:
        return Ended(code=128 + error.number)
    if ended.code == _KILLED and (ended.host_ended or not standing.job_runs()):
        _terminal.tell(f"{standing.host} of {standing.job} has ended, and this with it", kind="note")
    return ended


def _run_for_json(standing: Standing, command: tuple[str, ...]) -> int:
    import tempfile

    began = time.monotonic()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        ended = standing.run(command, stdio=(0, stdout.fileno(), stderr.fileno()))
        _terminal.emit_json(
            {
                "job": standing.job,
                "host": standing.host,
                "command": list(command),
                "exit_code": ended.code,
                "error": ended.error,
                "host_ended": ended.host_ended,
                "seconds": round(time.monotonic() - began, 3),
                "stdout": _text(stdout),
                "stderr": _text(stderr),
            }
        )
    return ended.code


def _text(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_SET)
    return file.read().decode(errors="backslashreplace")


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("-L", "--follow-link", is_flag=True, help="If SRC is a link, copy what it leads to.")
@json_option
def cp(source: str, target: str, follow_link: bool, as_json: bool) -> None:
    """Copy files out of a job's host or into one, as `docker cp` does; one of the two is JOB[/HOST]:PATH.

    From a running host, or from what the hosts of a job that failed left. SRC/. is what is in a directory;
    `-` is a tar stream on standard input or output. What is copied out belongs to you, and never goes
    through a link below DST.
    """
    from harness.debugging import copy

    if as_json and target == "-":
        raise UsageError("--json and a tar stream can't both go to standard output")
    open_store().close()
    done = copy(source, target, follow=follow_link)
    for why in done.why:
        _terminal.tell(f"not copied: {_terminal.harmless(why)}", kind="warning")
    if done.skipped > len(done.why):
        _terminal.tell(f"not copied: {done.skipped - len(done.why)} more", kind="warning")
    if as_json:
        _terminal.emit_json(
            {
                "source": source,
                "target": target,
                "files": done.files,
                "bytes": done.bytes,
                "skipped": done.skipped,
                "why": list(done.why),
            }
        )
    elif "-" not in (source, target):
        plural = "" if done.files == 1 else "s"
        print(f"{done.files} file{plural}, {_terminal.size(done.bytes)}, to {target}")
