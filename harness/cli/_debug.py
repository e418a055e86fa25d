"""`harness debug`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from harness import errors
from harness.cli import _terminal
from harness.cli._options import json_option, load_spec, spec_options

if TYPE_CHECKING:
    from harness.debugging import Port
    from harness.model import DebugOptions, Plan, Spec
    from harness.store import JobRecord

__all__ = ["debug"]


@click.command()
@spec_options
@click.option("--rank", type=click.IntRange(min=0), metavar="N", help="The rank to debug (default: 0).")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="P",
    help="Where editors attach, on 127.0.0.1 (default: 5678, or the next that is free).",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    help="Stand before the script's first line until a debugger is there (default), or run.",
)
@click.option("--pdb", "pdb_", is_flag=True, help="Debug in this terminal, without an editor.")
@click.option(
    "--post-mortem", is_flag=True, help="Run, and stop in this terminal where an exception isn't caught."
)
@click.option("--write-config", is_flag=True, help="Put the configuration into .vscode/launch.json.")
@click.option(
    "--attach-timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    metavar="SECONDS",
    help="How long the script waits for a debugger before the job ends (default: 600).",
)
@json_option
def debug(
    spec: Path,
    rank: int | None,
    port: int | None,
    wait: bool,
    pdb_: bool,
    post_mortem: bool,
    write_config: bool,
    attach_timeout: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Run the training job of SPEC under a debugger.

    One process of the job, the rank N of all, is debugged; the others wait with their first line until it
    begins. An editor attaches with debugpy at 127.0.0.1; the configuration for it is printed. With --pdb
    the debugger is in this terminal: it stops at the first line, at breakpoint(), and where an exception
    isn't caught. Time limits stand still while the script does.

    Ctrl-C stops the job, at the debugger's prompt it interrupts what you typed; there `q` ends the job, and
    Ctrl-\\ stops it whatever the script is doing.
    """
    from harness.cli._session import run_spec
    from harness.debugging import require_debugpy
    from harness.model import DebugOptions

    here = pdb_ or post_mortem
    _check_words(here=here, as_json=as_json, both=pdb_ and post_mortem, port=port, write_config=write_config)
    if not here:
        require_debugpy()
    wanted = DebugOptions(
        mode="pdb" if pdb_ else "post-mortem" if post_mortem else "debugpy",
        # An exception is told wherever it is, unless one rank is asked for.
        rank=rank if post_mortem else rank or 0,
        wait=wait and not post_mortem,
        attach_timeout=attach_timeout,
    )
    session = _Session(spec, wanted, port=port, write_config=write_config)
    return run_spec(
        lambda: session.load(**options),
        named=spec,
        as_json=as_json,
        check=session.check,
        beside=session.beside,
        screen=_SharedScreen,
    )


def _check_words(*, here: bool, as_json: bool, both: bool, port: int | None, write_config: bool) -> None:
    if both:
        raise errors.UsageError("--pdb stops at uncaught exceptions as well: leave out --post-mortem")
    if not here:
        return
    if port is not None or write_config:
        raise errors.UsageError(
            "--port and --write-config are for editors: leave out --pdb and --post-mortem"
        )
    screen = sys.stderr if as_json else sys.stdout
    if not (sys.stdin.isatty() and screen.isatty()):
        raise errors.UsageError(
            "--pdb and --post-mortem need a terminal to debug in: run this in one, or attach an editor instead"
        )


class _SharedScreen(_terminal.Screen):
    """A screen that is the program's while it stands in a terminal debugger: what we have to write then goes
    above the line that is being typed."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._gate = threading.RLock()
        self._line: Callable[[], bytes] | None = None

    def write(self, *lines: str) -> None:
        with self._gate:
            if self._line is None:
                super().write(*lines)
            elif lines:
                above = "".join(f"{line}\r\n" for line in lines)
                self.raw(f"\r\x1b[J{above}".encode(errors="replace") + self._line())

    def status(self, text: str) -> None:
        with self._gate:
            if self._line is None:
                super().status(text)

    def hold(self, line: Callable[[], bytes]) -> None:
        with self._gate:
            super().status("")
            self._line = line

    def release(self) -> None:
        with self._gate:
            self._line = None

    def raw(self, data: bytes) -> None:
        with self._gate:
            self._stream.flush()
            self._stream.buffer.write(data)
            self._stream.buffer.flush()


class _Session:
    """One debugged job, as this command goes along with it."""

    def __init__(self, spec: Path, options: DebugOptions, *, port: int | None, write_config: bool) -> None:
        self._named = spec
        self._options = options
        self._wanted_port = port
        self._write_config = write_config
        self._port: Port | None = None
        self._ranks = 1

    def load(self, **options: Any) -> Spec:
        loaded = load_spec(self._named, **options)
        self._spec_is_warm = loaded.local.warm
        local = dataclasses.replace(loaded.local, debug=self._options, warm=False)
        self._spec = dataclasses.replace(loaded, local=local)
        return self._spec

    def check(self, plan: Plan) -> None:
        """Before the job is on record: what can be wrong is told now."""
        from harness.debugging import Port, check_rank

        check_rank(plan, self._options)
        self._ranks = plan.world_size
        if self._options.mode == "debugpy":
            self._port = Port(self._wanted_port)

    @contextlib.contextmanager
    def beside(self, record: JobRecord, screen: _terminal.Screen) -> Iterator[None]:
        """While the job runs."""
        from harness.debugging import Attendant, Terminal
        from harness.home import Home

        assert isinstance(screen, _SharedScreen)
        home = Home.find()
        attendant = Attendant(home.job(record.name) / "hosts")
        screen.write(*screen.wrap(self._difference()))
        if self._spec_is_warm:
            screen.write("a debugged job has hosts of its own: [local] warm has no effect here")
        if self._ranks > 1:
            screen.write(*screen.wrap(self._ranks_note()))

        def stop() -> None:
            from harness.targets import local

            with contextlib.suppress(errors.UsageError):  # it has ended by itself
                local.stop(record.name, now=True, home=home)
            screen.write("you have quit the debugger: the job is killed")

        if self._port is not None:
            self._tell_editors(screen, self._port)
            with self._port:
                self._port.relay(attendant.find)
                attendant.begin(ready=lambda path: screen.write(self._ready(path)), stop=stop)
                try:
                    yield
                finally:
                    attendant.close()
            return

        with Terminal(screen, stop=stop) as terminal:
            attendant.begin(terminal=terminal)
            try:
                yield
            finally:
                attendant.close()

    def _ready(self, path: Path) -> str:
        assert self._port is not None
        rank = path.name.removeprefix("rank-").removesuffix(".sock")
        who = f"rank {rank} of {self._ranks}" if self._ranks > 1 else "the script"
        what = "stands before its first line" if self._options.wait else "runs"
        return f"{who} {what}: attach to 127.0.0.1:{self._port.number}"

    def _difference(self) -> str:
        tools = "debugpy, its threads and two processes of it" if self._port is not None else "pdb"
        return f"the script could tell by {tools}; its variables, paths, arguments and outputs are the same"

    def _ranks_note(self) -> str:
        return (
            "while one rank stands the others wait for it in their collectives, which give up after 30 min "
            "(gloo) or 10 min (NCCL): for longer stops pass timeout= to init_process_group"
        )

    def _tell_editors(self, screen: _terminal.Screen, port: Port) -> None:
        from harness.debugging import launch_configuration, path_mappings, project_of, write_vscode

        mappings = path_mappings(self._spec)
        project = project_of(self._named)
        configuration = launch_configuration(mappings, port=port.number, project=project)
        if self._write_config:
            try:
                path, changed = write_vscode(configuration, project)
            except errors.HarnessError as error:
                _terminal.tell(str(error), kind="warning")
            else:
                word = "is in" if changed else "was already in"
                screen.write(f"VS Code: {configuration['name']!r} {word} {path}")
                configuration = {}
        if configuration:
            screen.write("VS Code, in the configurations of .vscode/launch.json:")
            screen.write(*(f"  {line}" for line in json.dumps(configuration, indent=2).splitlines()))
        screen.write(f"PyCharm, Run > Edit Configurations > Attach to DAP: 127.0.0.1:{port.number}, debugpy")
        for local, remote in mappings:
            screen.write(f"  path mapping {local} = {remote}")
        if not mappings:
            screen.write(
                "The code comes as an archive: for breakpoints, unpack it and map that directory to /opt/ml/code"
            )
