"""Parts of the debugger that need no job: the editor's configuration, the port, the hook's eyes, the pause."""

from __future__ import annotations

import fcntl
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.debugging import Port, launch_configuration, path_mappings, project_of, write_vscode
from harness.debugging.inner import hook, relay
from harness.errors import MachineError, SpecError
from harness.lifecycle import stands
from harness.model import Spec, Upload

OURS = launch_configuration([(Path("/p/code"), "/opt/ml/code")], port=5678, project=Path("/p"))


def parsed(text: str) -> Any:
    """What VS Code reads: JSON with comments and trailing commas."""
    text = re.sub(
        r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', lambda match: match[1] or "", text, flags=re.DOTALL
    )
    return json.loads(re.sub(r",(\s*[}\]])", r"\1", text))


# ----------------------------------------------------------------------------------------------- configuration


def test_the_configuration_maps_source_dir_and_dependencies(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    one = tmp_path / "one.py"
    upload = Upload(path=code, uri="s3://b/k", kind="source", dependencies=(Path("/lib/tools"), one))
    mappings = path_mappings(Spec(request={}, uploads=(upload,)))
    assert mappings == [
        (Path("/lib/tools"), "/opt/ml/code/tools"),
        (one, "/opt/ml/code/one.py"),
        (code, "/opt/ml/code"),
    ]
    shown = launch_configuration(mappings, port=7, project=tmp_path)["pathMappings"]
    assert [each["localRoot"] for each in shown] == [
        "/lib/tools",
        "${workspaceFolder}/one.py",
        "${workspaceFolder}/code",
    ]


def test_a_single_script_is_found_where_it_lies(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    upload = Upload(path=script, uri="s3://b/k", kind="source", entry_point="train.py")
    assert path_mappings(Spec(request={}, uploads=(upload,))) == [(tmp_path, "/opt/ml/code")]
    archive = Upload(path=tmp_path / "code.tar.gz", uri="s3://b/k", kind="source")
    assert path_mappings(Spec(request={}, uploads=(archive,))) == []


def test_the_project_is_the_nearest_that_an_editor_opens(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    spec = tmp_path / "a" / "b" / "job.toml"
    spec.parent.mkdir(parents=True)
    assert project_of(spec) == tmp_path
    (tmp_path / "a" / ".vscode").mkdir()
    assert project_of(spec) == tmp_path / "a"


@pytest.mark.parametrize(
    "before",
    [
        "",
        "{}",
        '{\n  // a comment with "quotes" and }\n  "version": "0.2.0",\n}\n',
        '{"configurations": []}',
        '{"configurations": [/* none */]}',
        '{\n  "configurations": [\n    {"name": "mine", "url": "http://x//y"}, // [\n  ],\n  "compounds": [],\n}\n',
        '{\r\n  "configurations": [\r\n    {"name": "mine"}\r\n  ]\r\n}\r\n',
    ],
    ids=["none", "empty", "comment", "no configurations", "comment in list", "commas", "crlf"],
)
def test_launch_json_keeps_what_is_in_it(tmp_path: Path, before: str) -> None:
    path = tmp_path / ".vscode" / "launch.json"
    path.parent.mkdir()
    if before:
        path.write_bytes(before.encode())
    assert write_vscode(OURS, tmp_path) == (path, True)
    text = path.read_bytes().decode()
    found = parsed(text)
    assert found["configurations"][0] == OURS
    kept = parsed(before or "{}")
    assert found["configurations"][1:] == kept.get("configurations", [])
    assert {**kept, "configurations": 0, "version": 0} == {**found, "configurations": 0, "version": 0}
    assert all(comment in text for comment in re.findall(r"// a .*|/\*.*?\*/|// \[", before))
    assert text.count("\r\n") == (text.count("\n") if "\r\n" in before else 0)
    assert write_vscode(OURS, tmp_path) == (path, False)
    changed = {**OURS, "connect": {"host": "127.0.0.1", "port": 9}}
    assert write_vscode(changed, tmp_path) == (path, True)
    assert [each["name"] for each in parsed(path.read_text())["configurations"]].count(OURS["name"]) == 1


def test_what_the_user_added_to_our_configuration_stays(tmp_path: Path) -> None:
    path, _ = write_vscode(OURS, tmp_path)
    path.write_text(path.read_text().replace('"type"', '"preLaunchTask": "mine", // why\n      "type"'))
    write_vscode({**OURS, "justMyCode": True}, tmp_path)
    assert parsed(path.read_text())["configurations"] == [
        {**OURS, "justMyCode": True, "preLaunchTask": "mine"}
    ]
    assert "// why" in path.read_text()


@pytest.mark.parametrize("text", ["[1, 2", "[]", '{"configurations": {}}', '"x"', "\xff"])
def test_a_launch_json_that_cannot_be_understood_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".vscode" / "launch.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match="nothing was written"):
        write_vscode(OURS, tmp_path)
    assert path.read_bytes() == text.encode("latin-1")


# -------------------------------------------------------------------------------------------------------- port


def test_a_port_in_use_is_refused_and_the_next_is_taken() -> None:
    with Port(None) as first, Port(None) as second:
        assert first.number != second.number
        with pytest.raises(MachineError, match=f"port {first.number} can't be had .*--port"):
            Port(first.number)


def test_bytes_go_to_the_socket_that_is_found_when_it_is(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 40)  # a Unix socket's path has 107 bytes at most
    directory.mkdir()
    path = directory / "rank-0.sock"
    with Port(None) as port:
        port.relay(lambda: path if path.exists() else None)
        client = socket.create_connection(("127.0.0.1", port.number), timeout=10)
        client.sendall(b"early")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        (tmp_path / "s").rename(path)
        program, _ = listener.accept()
        assert program.recv(5) == b"early"
        program.sendall(b"answer")
        assert client.recv(6) == b"answer"
        program.close()
        assert client.recv(1) == b""
        client.close()
        listener.close()


# -------------------------------------------------------------------------------------------- inside the host


@pytest.mark.parametrize(
    ("line", "script", "module"),
    [
        ("python -- train.py --x 1", "train.py", None),
        ("python -u -X dev train.py", "train.py", None),
        ("python -Bum train --x", None, "train"),
        ("python -Wignore -m mpi4py train.py", "train.py", None),
        ("python -m torch.distributed.run train.py", None, "torch.distributed.run"),
        ("python --check-hash-based-pycs never train.py", "train.py", None),
        ("python -c pass train.py", None, None),
        ("python -", None, None),
        ("python", None, None),
    ],
)
def test_the_hook_reads_a_command_line_as_python_does(
    line: str, script: str | None, module: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = hook.Words(line.split())
    assert (words.script, words.module) == (script and str(tmp_path.resolve() / script), module)


def message(**words: Any) -> bytes:
    body = json.dumps(words).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def test_the_relay_cuts_messages_wherever_they_break() -> None:
    data = message(command="a", text="ü\r\n\r\n") + message(command="b")
    for at in range(len(data)):
        cutter = relay.Cutter()
        assert [each["command"] for each in (*cutter.feed(data[:at]), *cutter.feed(data[at:]))] == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        ({"command": "terminate"}, True),
        ({"command": "disconnect", "arguments": {"terminateDebuggee": True}}, True),
        ({"command": "disconnect", "arguments": {"restart": False}}, False),
        ({"command": "disconnect"}, False),
        ({"command": "continue", "arguments": {"threadId": 1}}, False),
    ],
)
def test_what_ends_the_program(words: dict[str, Any], ends: bool) -> None:
    assert relay.ends_the_program(words) is ends


def test_time_stands_still_from_stopped_to_going_on(tmp_path: Path) -> None:
    """As long as the lock is held by a process that lives."""
    path = tmp_path / "algo-1" / "debug" / "paused"
    path.parent.mkdir(parents=True)
    assert not stands(tmp_path)
    path.touch()
    pause = relay.Pause(str(path))
    messages = relay.Messages(pause)
    seen = []
    for words in (
        {"type": "event", "event": "stopped"},
        {"type": "response", "command": "evaluate", "success": True},
        {"type": "response", "command": "next", "success": True},
        {"type": "event", "event": "stopped"},
        {"type": "event", "event": "continued"},
    ):
        messages.feed(message(**words))
        seen.append(stands_elsewhere(tmp_path))
    assert seen == [True, True, False, True, False]
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert stands_elsewhere(tmp_path)
    assert not stands_elsewhere(tmp_path)


def stands_elsewhere(hosts: Path) -> bool:
    """A process doesn't see its own locks."""
    code = "import sys, pathlib, harness.lifecycle as l; print(l.stands(pathlib.Path(sys.argv[1])))"
    return subprocess.check_output([sys.executable, "-c", code, str(hosts)], text=True) == "True\n"


def test_the_relay_on_the_oldest_python(tmp_path: Path) -> None:
    """It listens as long as the program lives, and leads to the debugger's port."""
    found = sorted((Path.home() / ".pyenv/versions").glob("3.[89].*/bin/python3"))
    python = str(found[0]) if found else sys.executable
    with (
        socket.create_server(("127.0.0.1", 0)) as debugger,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as program,
        socket.socket(socket.AF_UNIX) as editor,
    ):
        place, port = str(tmp_path), debugger.getsockname()[1]
        command = [python, "-I", "-S", relay.__file__, place, "0", str(port), str(program.pid)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(0.5)  # longer than it waits for an editor at a time
        editor.connect(str(tmp_path / "rank-0.sock"))
        editor.sendall(message(command="initialize"))
        there, _ = debugger.accept()
        with there:
            assert there.recv(4096) == message(command="initialize")
        assert editor.recv(1) == b""
        assert program.stdin is not None
        program.stdin.close()
