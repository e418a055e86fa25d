"""What this interpreter is about to run, changed while it waits in `import site`.

CPython reads its command line once, into a structure (`PyConfig`) that it looks at again when it comes to run
the script. The interpreter was started with the name of a script that is nowhere else in memory, long enough
to have room for any other: where that name is, the other is written. What is found is checked against all that
is known of the structure; where it isn't as expected, nothing is forked.
"""

from __future__ import annotations

import ctypes
import os
import sys

from .agreed import PADDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Program", "UnsuitableError", "loaded"]

_STRUCTURE = 1 << 20
"""How far into the interpreter's state the configuration is looked for."""
_DISTANCES = range(20, 60)
"""From `argv` to `run_filename` in the structure, in words; 30 in 3.8, 35 in 3.13."""
_WORD = ctypes.sizeof(ctypes.c_void_p)
_WIDE = ctypes.sizeof(ctypes.c_wchar)
_PR_SET_MM = 35
_PR_SET_MM_MAP = 14


class UnsuitableError(Exception):
    """This Python is not as we know it."""


class Program:
    """The slots for module and script, and the memory that /proc shows as command line and environment."""

    def __init__(self, name: str) -> None:
        """Raises UnsuitableError. `name`: the placeholder."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._room = len(name)
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            slot, filename, first = _look(memory, name)
        finally:
            os.close(memory)
        self._slot = slot
        self._filename = filename
        self._first = first
        self._shown = self._look_at_what_is_shown()

    def set(self, *, script: str | None, module: str | None) -> None:
        """What comes after `import site`. Raises UnsuitableError, with nothing done, when a name is too long."""
        shown = script if script is not None else "-m"
        if script is not None and sys.version_info >= (3, 9) and not script.startswith("/"):
            # As `config_run_filename_abspath` does when it is not yet too late for it.
            script = os.getcwd().rstrip("/") + "/" + (script[2:] if script[:2] == "./" else script)
        runs = script if script is not None else module
        assert runs is not None
        if max(len(runs), len(shown)) > self._room:
            raise UnsuitableError("the script's name is too long")
        _write_wide(self._filename, runs)
        _write_wide(self._first, shown)
        if module is not None:
            # run_module is the word before run_filename; the memory stays CPython's to free.
            ctypes.c_void_p.from_address(self._slot - _WORD).value = self._filename
            ctypes.c_void_p.from_address(self._slot).value = None

    def show(self, argv: Sequence[bytes], environment: Sequence[bytes], name: bytes) -> None:
        """Make /proc show this command line, environment and name, as far as they find room."""
        try:
            with open("/proc/self/comm", "wb") as file:
                file.write(name[:15])
        except OSError:
            pass  # a /proc that can't be written to shows the interpreter's own name
        if self._shown is None:
            return
        fields, spaces = self._shown
        changed = list(fields)
        for (start, size), words, first in zip(spaces, (argv, environment), (7, 9)):
            data = b"".join(word + b"\0" for word in words)
            if len(data) > size:
                continue
            ctypes.memmove(start, data, len(data))
            changed[first], changed[first + 1] = start, start + len(data)
        self._map(changed)

    def _look_at_what_is_shown(self) -> tuple[list[int], list[tuple[int, int]]] | None:
        """The fields of `struct prctl_mm_map`, and where there is room for command line and environment."""
        with open("/proc/self/stat", "rb") as file:
            values = [int(word) for word in file.read().rpartition(b")")[2].split()[1:]]
        stat = dict(enumerate(values, start=4))  # numbered as in proc(5)
        self._libc.sbrk.restype = ctypes.c_void_p
        brk = self._libc.sbrk(ctypes.c_ssize_t(0))
        # start_code end_code start_data end_data start_brk brk start_stack arg_start … env_end
        fields = [
            stat[26],
            stat[27],
            stat[45],
            stat[46],
            stat[47],
            brk,
            stat[28],
            *(stat[n] for n in range(48, 52)),
        ]
        with open("/proc/self/environ", "rb") as file:
            environment = file.read()
        mark = (PADDING + "=").encode()
        place = environment.find(mark)
        if place < 0 or stat[48] == 0:
            return None
        size = environment.index(b"\0", place) + 1 - place
        spaces = [(stat[48], stat[49] - stat[48]), (stat[50] + place, size)]
        # The kernel may not allow it (no CONFIG_CHECKPOINT_RESTORE): tried now, with nothing changed.
        return (fields, spaces) if self._map(fields) else None

    def _map(self, fields: Sequence[int]) -> bool:
        packed = (ctypes.c_uint64 * 13)(*fields)
        # Then the auxiliary vector, none; its size, 0, and a descriptor of the executable, -1.
        packed[12] = int.from_bytes(b"\0\0\0\0\xff\xff\xff\xff", sys.byteorder)
        size = ctypes.c_ulong(ctypes.sizeof(packed))
        done = self._libc.prctl(
            _PR_SET_MM, ctypes.c_ulong(_PR_SET_MM_MAP), ctypes.byref(packed), size, ctypes.c_ulong(0)
        )
        return bool(done == 0)


def _look(memory: int, name: str) -> tuple[int, int, int]:
    """Address of `run_filename` in the structure, of what it points to, and of what `argv[0]` points to."""
    api = ctypes.pythonapi
    api.PyInterpreterState_Main.restype = ctypes.c_void_p
    start = api.PyInterpreterState_Main()
    state = b""
    while len(state) < _STRUCTURE:
        part = _peek(memory, start + len(state), 65536)
        state += part
        if len(part) < 65536:
            break
    words = memoryview(state[: len(state) // _WORD * _WORD]).cast("L")  # a long is a word on Linux
    pattern = b"".join(ord(letter).to_bytes(_WIDE, sys.byteorder) for letter in name) + bytes(_WIDE)
    head = pattern[:64]

    def is_name(address: int) -> bool:
        return _peek(memory, address, 64) == head and _peek(memory, address, len(pattern)) == pattern

    lists: list[tuple[int, int]] = []
    for place, word in enumerate(words):
        if word < 1 << 16 or word % 4 or word >> 56:
            continue
        if place and words[place - 1] == 1 and not lists:
            item = int.from_bytes(_peek(memory, word, _WORD), sys.byteorder)
            if is_name(item):
                lists.append((place, item))
        elif lists and place - lists[0][0] in _DISTANCES and is_name(word):
            if words[place - 1] or words[place - 2]:
                break
            return start + place * _WORD, word, lists[0][1]
    raise UnsuitableError("this Python's configuration is not where it is looked for")


def _peek(memory: int, address: int, size: int) -> bytes:
    """What memory holds there; less where it ends, nothing where there is none."""
    try:
        return os.pread(memory, size, address)
    except (OSError, OverflowError):
        return b""


def _write_wide(address: int, text: str) -> None:
    data = ctypes.create_unicode_buffer(text)
    ctypes.memmove(address, data, ctypes.sizeof(data))


def loaded(word: str) -> list[ctypes.CDLL]:
    """The libraries in this process whose file name has `word` in it."""
    with open("/proc/self/maps", "rb") as file:
        paths = {line.split(None, 5)[5].strip() for line in file if word.encode() in line}
    return [ctypes.CDLL(os.fsdecode(path)) for path in paths if b".so" in os.path.basename(path)]
