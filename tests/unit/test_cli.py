"""The command line as a whole: names, help, exit codes, what is imported, how it writes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from harness import __version__, errors
from harness.cli import _app, _terminal, main

SUBCOMMANDS = {"image": ("build", "list")}


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for name in _app.COMMANDS:
        command = _app.harness.get_command(click.Context(_app.harness), name)
        assert command is not None
        if isinstance(command, click.Group):
            found += [(f"{name} {each}", command.commands[each]) for each in SUBCOMMANDS[name]]
        else:
            found.append((name, command))
    return found


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    for name, (_, line) in _app.COMMANDS.items():
        command = _app.harness.get_command(click.Context(_app.harness), name)
        assert command is not None
        assert command.get_short_help_str(200) == line.rstrip(".") or command.help
        assert command.name == name


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_has_json_and_help(name: str, command: click.Command) -> None:
    if name != "shell":  # a terminal: it has no result
        assert any("--json" in option.opts for option in command.params), name
    assert command.help, name
    undocumented = [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ]
    assert undocumented == []


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in _app.COMMANDS)
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"harness {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "there is no command 'rum': did you mean run?"),
        (["frobnicate"], "there is no command 'frobnicate': see `harness --help`"),
        (["jobs", "--frob"], "no such option"),
        (["describe"], "missing argument 'JOB' (see `harness describe --help`)"),
        (["describe", "nope"], "there is no job 'nope'"),
        (["run", "nowhere.toml"], "can't be read"),
        (["jobs", "--status", "Asleep"], "is not one of"),
        (["gc", "--older-than", "soon"], "'soon' is no age: write it as 12h, 7d or 2w"),
        (["run", "job.toml", "--set", "lr"], "is no assignment"),
    ],
)
def test_bad_words(home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    del home
    assert main(words) == errors.BAD_SPEC
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert main([*words, "--json"]) == errors.BAD_SPEC
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == errors.BAD_SPEC


def test_a_state_directory_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "file"))
    assert main(["jobs"]) == errors.MACHINE_CANNOT
    assert "set HARNESS_HOME" in capsys.readouterr().err


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("boom")


def test_what_nobody_foresaw(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del home
    monkeypatch.setattr("harness.store.Store.jobs", fail)
    assert main(["jobs", "--name-contains=geheim"]) == _app.UNEXPECTED
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    saved = Path(shown.split("the traceback is in ")[1].split(",")[0])
    text = saved.read_text()
    saved.unlink()
    assert "RuntimeError: boom" in text
    assert "jobs --name-contains" in text
    assert "geheim" not in text.partition("Traceback")[0]
    monkeypatch.setenv("HARNESS_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        main(["jobs"])


def test_a_reader_that_has_enough(home: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "harness", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    command.stdout.close()
    _, said = command.communicate()
    assert (command.returncode, said) == (141, b"")
    del home


@pytest.mark.parametrize("words", [["--help"], ["jobs"], ["stop", "--help"]])
def test_quick_commands_import_nothing_heavy(home: Path, words: list[str]) -> None:
    code = f"import sys; from harness.cli import main; main({words!r}); print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"botocore", "boto3", "docker", "rich", "sagemaker", "psutil", "pynvml", "regex", "yaml", "torch"}
    assert heavy.isdisjoint(run.stderr.split())
    assert "harness.lifecycle" not in run.stderr.split()
    del home


def test_doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (errors.COMPLETED if found["ok"] else errors.MACHINE_CANNOT)
    assert {"machine", "python", "state", "disk", "docker", "sandbox", "gpus"} <= {
        check["name"] for check in found["checks"]
    }
    assert main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert str(home) in shown
    assert all(check["detail"] in shown for check in found["checks"])


def test_doctor_of_a_machine_that_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "file"))
    assert main(["doctor"]) == errors.MACHINE_CANNOT
    assert "fail  state" in capsys.readouterr().out


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


def test_a_status_line_stays_below_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    screen = _terminal.Screen(terminal)
    screen.status("working " * 5)
    screen.write("line")
    screen.status("")
    assert terminal.getvalue() == ("\r\x1b[Kworking working wo…\r\x1b[Kline\nworking working wo…\r\x1b[K")


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b" in _terminal.Screen(Terminal()).style("text", "red")) == coloured
    assert _terminal.Screen(io.StringIO()).style("text", "red") == "text"


def test_a_terminal_without_unicode() -> None:
    terminal = Terminal("ascii")
    _terminal.Screen(terminal).write("algo-1 │ 2 × …")
    assert terminal.getvalue() == "algo-1 | 2 x ~\n"


def test_a_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()
    screen = _terminal.Screen(stream)
    screen.status("working")
    screen.write(*screen.wrap("word " * 40))
    assert stream.getvalue() == "word " * 40 + "\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (187, "3:07 min"),
        (3600, "1:00:00 h"),
        (18131, "5:02:11 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert _terminal.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (43_100_000, "43.1 MB"),
        (999_960_000, "1.0 GB"),
        (5e12, "5.0 TB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert _terminal.size(count) == text


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("API_TOKEN", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("WANDB_API_KEY", True),
        ("wandb_api_key", True),
        ("DB_PASSWORD", True),
        ("HF_TOKEN", True),
        ("KEYBOARD", False),
        ("NCCL_DEBUG", False),
        ("MONKEY", False),
    ],
)
def test_values_that_look_secret(name: str, hidden: bool) -> None:
    assert (_terminal.mask({name: "value"})[name] == "value") == (not hidden)
