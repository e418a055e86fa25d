"""The `harness` command: finds its sub-command, runs it, and turns what went wrong into an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from harness import __version__, errors
from harness.cli import _terminal

__all__ = ["COMMANDS", "UNEXPECTED", "main"]

UNEXPECTED: Final = 70
"""Exit code after an error of our own that nobody foresaw (EX_SOFTWARE)."""
_BROKEN_PIPE: Final = 128 + 13

COMMANDS: Final = {
    "run": ("harness.cli._run", "Run a training job on this machine."),
    "watch": ("harness.cli._watch", "Run a job, and again whenever its code or spec changes."),
    "debug": ("harness.cli._debug", "Run a job under a debugger: an editor's, or pdb in the terminal."),
    "plan": ("harness.cli._plan", "Say how this machine would run a job, field by field."),
    "jobs": ("harness.cli._jobs", "List jobs, newest first."),
    "describe": ("harness.cli._jobs", "Show a job in DescribeTrainingJob's shape."),
    "logs": ("harness.cli._logs", "Show or follow the log of a job."),
    "metrics": ("harness.cli._metrics", "Show the metrics of a job."),
    "rerun": ("harness.cli._rerun", "Run a job again, as it was or from its checkpoint."),
    "why": ("harness.cli._why", "Say why a job failed, or what a running one is doing."),
    "shell": ("harness.cli._shell", "Open a shell in a running host, or in what a failed job left."),
    "exec": ("harness.cli._shell", "Run a command in a running host."),
    "cp": ("harness.cli._shell", "Copy files out of a host, or into one."),
    "stop": ("harness.cli._jobs", "Stop a job as SageMaker does, or kill it."),
    "verify": ("harness.cli._verify", "Hold an image or a spec against SageMaker's container contract."),
    "image": ("harness.cli._image", "Build or list training images."),
    "doctor": ("harness.cli._doctor", "Check what this machine can do, and say what to change."),
    "gc": ("harness.cli._gc", "Free the disk space of old jobs and caches."),
}
"""Name → module and one line of help; a module is imported when its command is used."""


class _LazyGroup(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `harness --help`"
            raise click.UsageError(f"there is no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 Completed, 1 job Failed, 2 bad spec or usage, 3 this machine can't, 4 Stopped, "
    "130 interrupted. State is kept in $HARNESS_HOME.",
)
@click.version_option(__version__, "-V", "--version", prog_name="harness", message="%(prog)s %(version)s")
def harness() -> None:
    """Run the exact SageMaker training job on the machine in front of you."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing that goes wrong leaves a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _terminal.prepare_streams()
        result = harness.main(words, prog_name="harness", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit):
        # The reader has what it wanted, as in `harness logs job | head`; click exits then, nothing else does.
        _terminal.silence_stdout()
        return _BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        return _refuse(words, "Interrupted", "interrupted", errors.INTERRUPTED)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        return _refuse(words, "UsageError", _usage(error), error.exit_code)
    except errors.HarnessError as error:
        if _debugging():
            raise
        return _refuse(words, type(error).__name__, str(error), error.exit_code)
    except Exception as error:
        if _debugging():
            raise
        message = (
            f"the harness failed unexpectedly ({type(error).__name__}: {error}); {_save_traceback(words)}"
        )
        return _refuse(words, type(error).__name__, message, UNEXPECTED)


def _debugging() -> bool:
    return os.environ.get("HARNESS_DEBUG", "") not in ("", "0")


def _usage(error: click.ClickException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if isinstance(error, click.UsageError) and context is not None and "--help" not in message:
        message = f"{message.rstrip('.')} (see `{context.command_path} --help`)"
    return message[:1].lower() + message[1:]


def _refuse(words: Sequence[str], kind: str, message: str, code: int) -> int:
    try:
        _terminal.tell(message, kind="error")
        if "--json" in words:
            import json

            print(json.dumps({"error": {"type": kind, "message": message, "exit_code": code}}))
        sys.stdout.flush()
    except (OSError, errors.DiskError):
        _terminal.silence_stdout()  # there is nobody left to tell: the exit code has to do
    return code


def _save_traceback(words: Sequence[str]) -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="harness-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"harness {__version__}, Python {sys.version}\n")
        # The words of --set may hold a secret: only the command and the options' names are kept.
        names = [word for number, word in enumerate(words) if not number or word.startswith("-")]
        file.write(f"command: {' '.join(word.partition('=')[0] for word in names)}\n\n")
        file.write(traceback.format_exc())
    return f"the traceback is in {file.name}, please report it"
