"""A metric definition's regex, rewritten so that one pass over many lines gives what `re.search` gives per line.

The definition is Python's flavour (contract: I10) and is searched line by line (contract: I9). Calling
`re.search` for every line and definition is too slow for 200,000 lines a second, and `re` can't be
interrupted when a pattern is catastrophic. So Python's own parse tree of the pattern is written out again for
the `regex` package, which knows time limits, with two changes: nothing in it can match a newline, and what
follows the first match in a line is consumed. Because the tree is `re`'s, `regex`'s extensions (fuzzy
matching, POSIX classes, nested sets) never apply.
"""

from __future__ import annotations

import re
import sys
import warnings
from typing import Any, Final

if sys.version_info >= (3, 11):
    from re import _constants as sre
    from re import _parser as sre_parse
else:  # pragma: no cover - the same modules under their names of Python 3.10
    import sre_constants as sre
    import sre_parse

__all__ = ["literals", "parse", "rewrite"]

_NEWLINE: Final = 10
_SETS: Final = {
    sre.CATEGORY_DIGIT: r"\d",
    sre.CATEGORY_NOT_DIGIT: r"\D",
    sre.CATEGORY_SPACE: r"\s",
    sre.CATEGORY_NOT_SPACE: r"\S",
    sre.CATEGORY_WORD: r"\w",
    sre.CATEGORY_NOT_WORD: r"\W",
}
_WITH_NEWLINE: Final = {sre.CATEGORY_SPACE, sre.CATEGORY_NOT_DIGIT, sre.CATEGORY_NOT_WORD}
# A line's start and end stand for the text's: what is searched is one line.
_PLACES: Final = {
    sre.AT_BEGINNING: "^",
    sre.AT_BEGINNING_STRING: "^",
    sre.AT_END: "$",
    sre.AT_END_STRING: "$",
    sre.AT_BOUNDARY: r"\b",
    # `re` finds no non-boundary in an empty text.
    sre.AT_NON_BOUNDARY: r"(?:\B(?!^$))",
}
_REPEATS: Final = {
    sre.MAX_REPEAT: "",
    sre.MIN_REPEAT: "?",
    getattr(sre, "POSSESSIVE_REPEAT", None): "+",
}
_FLAGS: Final = {"a": re.ASCII, "i": re.IGNORECASE}


def parse(pattern: str) -> Any:
    """`re`'s parse tree of `pattern`; raises `re.error`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FutureWarning: possible nested set
        re.compile(pattern)
        return sre_parse.parse(pattern)


def rewrite(tree: Any) -> str:
    """The pattern for `regex.compile(…, regex.VERSION0 | regex.MULTILINE)`.

    Every line of the text must end with a newline. Each match is the first of its line and consumes the
    rest of it; group numbers are those of the original.
    """
    flags = "".join(letter for letter, flag in _FLAGS.items() if tree.state.flags & flag)
    body = "".join(_write(item) for item in tree)
    return f"(?{flags}:{body})[^\\n]*+\\n" if flags else f"(?:{body})[^\\n]*+\\n"


def literals(tree: Any) -> tuple[str, ...]:
    """Texts of which every line with a match holds at least one; empty when nothing is certain."""
    if tree.state.flags & re.IGNORECASE:
        return ()
    return _required(tree)


def _write(item: tuple[Any, Any]) -> str:
    op, argument = item
    if op is sre.LITERAL:
        return _character(argument) if argument != _NEWLINE else "(?!)"
    if op is sre.NOT_LITERAL:
        return "[^\\n]" if argument == _NEWLINE else f"[^\\n{_character(argument)}]"
    if op is sre.ANY:
        return "[^\\n]"
    if op is sre.IN:
        return _set(argument)
    if op is sre.AT:
        return _PLACES[argument]
    if op is sre.BRANCH:
        return f"(?:{'|'.join(_sequence(branch) for branch in argument[1])})"
    if op is sre.SUBPATTERN:
        return _group(*argument)
    if op in _REPEATS:
        low, high, body = argument
        most = "" if high is sre.MAXREPEAT else high
        return f"(?:{_sequence(body)}){{{low},{most}}}{_REPEATS[op]}"
    if op is getattr(sre, "ATOMIC_GROUP", None):
        return f"(?>{_sequence(argument)})"
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        direction, body = argument
        sign = "=" if op is sre.ASSERT else "!"
        return f"(?{'<' if direction < 0 else ''}{sign}{_sequence(body)})"
    if op is sre.GROUPREF:
        return rf"\g<{argument}>"
    if op is sre.GROUPREF_EXISTS:
        number, yes, no = argument
        return f"(?({number}){_sequence(yes)}|{_sequence(no) if no is not None else ''})"
    if op is sre.FAILURE:
        return "(?!)"
    raise NotImplementedError(f"this Python's re knows {op}, which the harness doesn't")


def _sequence(items: Any) -> str:
    return "".join(_write(item) for item in items)


def _group(number: int | None, on: int, off: int, body: Any) -> str:
    added = "".join(letter for letter, flag in _FLAGS.items() if on & flag)
    removed = "".join(letter for letter, flag in _FLAGS.items() if off & flag)
    inner = _sequence(body)
    if added or removed:
        inner = f"(?{added}{'-' + removed if removed else ''}:{inner})"
    return f"({inner})" if number is not None else f"(?:{inner})"


def _set(items: list[tuple[Any, Any]]) -> str:
    negated = items[0][0] is sre.NEGATE
    members = []
    newline = False
    for op, argument in items[negated:]:
        if op is sre.LITERAL:
            newline |= argument == _NEWLINE
            members.append(_character(argument))
        elif op is sre.RANGE:
            low, high = argument
            newline |= low <= _NEWLINE <= high
            members.append(f"{_character(low)}-{_character(high)}")
        else:
            newline |= argument in _WITH_NEWLINE
            members.append(_SETS[argument])
    inside = "".join(members)
    if negated:
        return f"[^\\n{inside}]"
    return f"(?!\\n)[{inside}]" if newline else f"[{inside}]"


def _character(code: int) -> str:
    character = chr(code)
    return character if character.isalnum() and character.isascii() else f"\\U{code:08x}"


def _required(items: Any) -> tuple[str, ...]:
    """The best set of texts, one of which must be there: the one whose shortest text is longest."""
    best: tuple[str, ...] = ()
    run = ""

    def offer(texts: tuple[str, ...]) -> None:
        nonlocal best
        if texts and all(texts) and (not best or min(map(len, texts)) > min(map(len, best))):
            best = texts

    for op, argument in items:
        if op is sre.LITERAL:
            run += chr(argument)
            continue
        offer((run,))
        run = ""
        if op is sre.SUBPATTERN and not argument[1] & re.IGNORECASE:
            offer(_required(argument[3]))
        elif op in _REPEATS and argument[0] > 0:
            offer(_required(argument[2]))
        elif op is sre.BRANCH:
            branches = [_required(branch) for branch in argument[1]]
            if all(branches):
                offer(tuple(text for branch in branches for text in branch))
        elif op is getattr(sre, "ATOMIC_GROUP", None):
            offer(_required(argument))
    offer((run,))
    return best
