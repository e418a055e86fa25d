"""Which modules a warm host imports beforehand: those of other people that the script imports.

Found in the text, nothing is run. What counts is what importing the script would import: the statements of
its module level, also those in `if`, `try`, `with` and class bodies, and the same of the user's own modules
that it reaches that way, in the order in which they would be met. Inside a function only those that are known
to take long count, for a function that is never called must cost no memory for little. Never: what
`if TYPE_CHECKING` guards, the standard library, and modules that lie beside the script.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness._values import dataclass
from harness.engines.warm._match import is_start_relevant

__all__ = ["modules"]

_HEAVY: Final = frozenset(
    [
        "accelerate",
        "cv2",
        "datasets",
        "deepspeed",
        "diffusers",
        "jax",
        "keras",
        "lightgbm",
        "lightning",
        "matplotlib",
        "numpy",
        "pandas",
        "peft",
        "PIL",
        "polars",
        "pyarrow",
        "pytorch_lightning",
        "scipy",
        "sklearn",
        "spacy",
        "tensorflow",
        "timm",
        "tokenizers",
        "torch",
        "torchaudio",
        "torchtext",
        "torchvision",
        "transformers",
        "xgboost",
    ]
)
"""What is worth importing beforehand even where only a function imports it."""
_MOST_FILES: Final = 200
_MOST_BYTES: Final = 2 << 20
"""A file beyond this is data in Python's clothes."""


def modules(code: Path, entry: str) -> tuple[str, ...]:
    """Dotted names of what to import before the script `entry` in the directory `code` runs, in its order.

    A script that sets a variable which modules read while they are imported (`OMP_NUM_THREADS`) gets nothing
    of what it imports after that: imported before, it would not see the variable. A file that isn't Python,
    or isn't there, imports nothing.
    """
    scan = _Scan(code)
    scan.file(code / entry)
    return tuple(scan.found)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What one file's text says."""

    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    """(level, module, members) of its import statements, in order; members only of `from … import`."""
    closed: bool
    """After these it sets a variable that modules read while they are imported."""
    in_functions: tuple[str, ...]
    """Modules that only functions import."""


class _Scan:
    def __init__(self, code: Path) -> None:
        self._code = code
        self._seen: set[Path] = set()
        self._closed = False
        self.found: dict[str, None] = {}

    def file(self, path: Path) -> None:
        """What importing this file imports."""
        if path in self._seen or len(self._seen) >= _MOST_FILES:
            return
        self._seen.add(path)
        try:
            if path.stat().st_size > _MOST_BYTES:
                return
            read = _read(path.read_bytes())
        except OSError:
            return
        for level, module, members in read.imports:
            if self._closed:
                return
            if level:
                self._relative(level, module, members, path)
            else:
                self._absolute(module, members, path)
        self._closed |= read.closed
        if not self._closed:
            for name in read.in_functions:
                self._third_party(name, only_heavy=True)

    def _absolute(self, name: str, members: tuple[str, ...], path: Path) -> None:
        """`import name`, or `from name import members`."""
        for place in (path.parent, self._code):
            if self._own(place, name.split("."), members):
                return
        self._third_party(name)

    def _relative(self, level: int, module: str, members: tuple[str, ...], path: Path) -> None:
        place = path.parent
        for _ in range(level - 1):
            place = place.parent
        if place.is_relative_to(self._code):
            self._own(place, module.split(".") if module else [], members)

    def _own(self, place: Path, parts: list[str], members: tuple[str, ...]) -> bool:
        """Follow a module of the user's; False when there is none of that name in `place`."""
        if parts and not _is_module(place, parts[0]):
            return False
        for part in parts:
            if not (place / part).is_dir():
                self.file(place / f"{part}.py")
                return True
            self.file(place / part / "__init__.py")
            place = place / part
        for member in members:
            if (place / f"{member}.py").is_file():
                self.file(place / f"{member}.py")
            elif (place / member).is_dir():
                self.file(place / member / "__init__.py")
        return True

    def _third_party(self, name: str, *, only_heavy: bool = False) -> None:
        # Of `from torch import nn` only torch: what nn is can be told only when torch is imported.
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or _is_module(self._code, top):
            return
        if not only_heavy or top in _HEAVY:
            self.found[name] = None


@functools.lru_cache(maxsize=2 * _MOST_FILES)
def _read(text: bytes) -> _Read:
    """Parsing is what takes long, and from one run to the next few files change."""
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    closed = False
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Read(imports=(), closed=False, in_functions=())  # it will fail in the host, in its own words
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif any(is_start_relevant(name) for name in _variables_set(node)):
            closed = True
            break
    return _Read(imports=tuple(imports), closed=closed, in_functions=tuple(_in_functions(tree)))


def _is_module(place: Path, name: str) -> bool:
    return (place / f"{name}.py").is_file() or (place / name).is_dir()


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, in order; `except` blocks are for when things fail."""
    for node in body:
        yield node
        match node:
            case ast.If():
                if not _type_checking(node.test):
                    yield from _statements(node.body)
                yield from _statements(node.orelse)
            case ast.Try():
                for part in (node.body, node.orelse, node.finalbody):
                    yield from _statements(part)
            case ast.With() | ast.ClassDef():
                yield from _statements(node.body)
            case ast.For() | ast.While():
                yield from _statements(node.body)
                yield from _statements(node.orelse)
            case _:
                pass


def _type_checking(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case _:
            return False


def _in_functions(tree: ast.Module) -> Iterator[str]:
    """Modules that functions import, and `except` blocks."""
    at_import = set(map(id, _statements(tree.body)))
    pending: deque[ast.AST] = deque([tree])
    while pending:
        node = pending.popleft()
        if isinstance(node, ast.If) and _type_checking(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if id(node) in at_import:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def _variables_set(node: ast.stmt) -> Iterator[str]:
    """Environment variables that this one statement sets: os.environ[…] = …, .setdefault, .update, putenv."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            match target:
                case ast.Subscript(
                    value=ast.Attribute(attr="environ") | ast.Name(id="environ"),
                    slice=ast.Constant(value=str(name)),
                ):
                    yield name
                case _:
                    pass
    elif isinstance(node, ast.Expr):
        match node.value:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(attr="environ") | ast.Name(id="environ"),
                    attr="setdefault" | "__setitem__",
                )
                | ast.Attribute(attr="putenv"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(attr="environ") | ast.Name(id="environ"), attr="update"
                ),
                args=arguments,
                keywords=keywords,
            ):
                yield from (keyword.arg for keyword in keywords if keyword.arg)
                for argument in arguments:
                    if isinstance(argument, ast.Dict):
                        yield from (
                            key.value
                            for key in argument.keys
                            if isinstance(key, ast.Constant) and isinstance(key.value, str)
                        )
            case _:
                pass
