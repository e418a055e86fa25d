"""Which command lines a Python that is already running can still obey, and which programs are that Python."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Command", "RefusedError", "find", "is_launcher", "is_same_python", "unfold"]

_LAUNCHERS = frozenset({"torch.distributed.run", "torch.distributed.launch"})
_LAUNCHER_SCRIPTS = frozenset({"torchrun"})
_SHEBANG = 256


class RefusedError(Exception):
    """The command has to be started the ordinary way; the text says why."""


class Command:
    """A Python command line, read. Raises RefusedError for what only a new process can do."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.unbuffered = False
        self.script: str | None = None
        self.module: str | None = None
        self.arguments: list[str] = []
        words = argv[1:]
        while words:
            word = words.pop(0)
            if word == "--":
                break
            if word == "-" or not word.startswith("-"):
                words.insert(0, word)
                break
            if word.startswith("--"):
                raise RefusedError("Python is started with " + word)
            if self._options(word[1:], words):
                return
        if not words or words[0] == "-":
            raise RefusedError("Python is started without a script")
        self.script, self.arguments = words[0], words[1:]

    def _options(self, letters: str, words: list[str]) -> bool:
        """Read one word of options; whether it was the last of Python's own."""
        for place, letter in enumerate(letters, start=1):
            if letter == "u":
                self.unbuffered = True
            elif letter == "m" and (letters[place:] or words):
                self.module = letters[place:] or words.pop(0)
                self.arguments = words
                return True
            else:
                raise RefusedError("Python is started with -" + letter)
        return False


def is_launcher(argv: list[str]) -> bool:
    """Whether this Python command line starts other Python scripts: torchrun."""
    try:
        command = Command(argv)
    except RefusedError:
        return False
    if command.script is not None:
        return os.path.basename(command.script) in _LAUNCHER_SCRIPTS
    return command.module in _LAUNCHERS


def find(name: str, environment: Mapping[str, str], cwd: str) -> str | None:
    """The file that execvp would execute; None when there is none."""
    if "/" in name:
        return name if _executable(os.path.join(cwd, name)) else None
    for folder in environment.get("PATH", os.defpath).split(":"):
        path = os.path.join(folder, name)
        if _executable(os.path.join(cwd, path)):
            return path
    return None


def _executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def unfold(path: str, argv: list[str], environment: Mapping[str, str], cwd: str) -> list[str] | None:
    """The Python command line that executing the file `path` with `argv` amounts to.

    A script with a Python in its first line is started by that Python, as the kernel does; None when it
    isn't a Python of ours in the end.
    """
    if is_same_python(path):
        return argv
    try:
        with open(os.path.join(cwd, path), "rb") as file:
            first = file.read(_SHEBANG).split(b"\n")[0]
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    words = os.fsdecode(first[2:]).strip().split(None, 1)
    if words and os.path.basename(words[0]) == "env" and len(words) == 2 and not words[1].startswith("-"):
        found = find(words[1].strip(), environment, cwd)
        # The kernel starts env with these words, and env starts what it finds with the name it was given.
        return None if found is None or not is_same_python(found) else [words[1].strip(), path, *argv[1:]]
    if not words or not is_same_python(words[0]):
        return None
    return [*words, path, *argv[1:]]


def is_same_python(path: str) -> bool:
    """Whether executing `path` starts the interpreter that this one is, with the same packages."""
    if path == sys.executable:
        return True
    try:
        if os.path.realpath(path) != os.path.realpath(sys.executable):
            return False
    except OSError:
        return False
    # A virtual environment's Python is a link as well: it is told by the file beside or above it.
    return _environment(path) == _environment(sys.executable)


def _environment(path: str) -> str | None:
    folder = os.path.dirname(os.path.abspath(path))
    for place in (folder, os.path.dirname(folder)):
        if os.path.isfile(os.path.join(place, "pyvenv.cfg")):
            return os.path.realpath(place)
    return None
