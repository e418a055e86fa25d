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

__all__ = ["is_cheap", "literals", "parse", "rewrite"]

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
_SINGLE: Final = {sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN}


def parse(pattern: str) -> Any:
    """`re`'s parse tree of `pattern`; raises `re.error`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FutureWarning: possible nested set
        re.compile(pattern)
        return sre_parse.parse(pattern)


def rewrite(tree: Any) -> tuple[str, re.RegexFlag]:
    """The pattern for `regex` (with VERSION0), and when cheap also for `re`; and its flags.

    Every line of the text must end with a newline. Each match is the first of its line and consumes the
    rest of it; group numbers are those of the original. Raises `NotImplementedError` for what only a
    newer `re` knows, and for `(?a:…)`, which `regex` takes for the whole pattern.
    """
    flags = re.RegexFlag(tree.state.flags) & (re.ASCII | re.IGNORECASE)
    # Where only a part ignores case, `regex` misses matches (seen in 2026.11): both cases are written out.
    fold = bool(flags & re.IGNORECASE) if _ignores_case_in_part(tree) else None
    if fold is not None:
        flags &= ~re.IGNORECASE
    return f"(?:{_sequence(tree, fold)})[^\\n]*\\n", flags | re.MULTILINE


def literals(tree: Any) -> tuple[str, ...]:
    """Texts of which every line with a match holds at least one; empty when nothing is certain."""
    if tree.state.flags & re.IGNORECASE:
        return ()
    return _required(tree)


def is_cheap(tree: Any) -> bool:
    """Whether a search needs no time limit in short lines, so that the faster `re` may do it.

    True for a text followed by single characters of which one may be repeated, as in
    `Train_Loss = (.*?) :`: in a line of n characters that takes n² steps at worst.
    """
    items = list(tree)
    return bool(items) and items[0][0] is sre.LITERAL and _repeats(items) <= 1


def _repeats(items: Any) -> float:
    """How many repeats there are; infinite when there is anything whose cost is less plain."""
    total = 0.0
    for op, argument in items:
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            body = list(argument[2])
            total += 1 if len(body) == 1 and body[0][0] in _SINGLE else float("inf")
        elif op is sre.SUBPATTERN:
            total += _repeats(argument[3])
        elif op not in _SINGLE and op is not sre.AT:
            return float("inf")
    return total


def _ignores_case_in_part(items: Any) -> bool:
    for op, argument in items:
        if op is sre.SUBPATTERN and (argument[1] | argument[2]) & re.IGNORECASE:
            return True
        if any(_ignores_case_in_part(body) for body in _bodies(op, argument)):
            return True
    return False


def _bodies(op: Any, argument: Any) -> list[Any]:
    """The sequences inside an item."""
    if op is sre.SUBPATTERN:
        return [argument[3]]
    if op in _REPEATS:
        return [argument[2]]
    if op is sre.BRANCH:
        return list(argument[1])
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        return [argument[1]]
    if op is getattr(sre, "ATOMIC_GROUP", None):
        return [argument]
    if op is sre.GROUPREF_EXISTS:
        return [body for body in argument[1:] if body is not None]
    return []


def _sequence(items: Any, fold: bool | None) -> str:
    return "".join(_write(op, argument, fold) for op, argument in items)


def _write(op: Any, argument: Any, fold: bool | None) -> str:
    """One item; `fold` says that letters must be written in both cases, None that the flags do it."""
    if op is sre.LITERAL:
        if argument == _NEWLINE:
            return "(?!)"
        return _set([(op, argument)], fold) if fold and len(_cases(argument)) > 1 else _character(argument)
    if op is sre.NOT_LITERAL:
        return _set([(sre.NEGATE, None), (sre.LITERAL, argument)], fold)
    if op is sre.ANY:
        return "[^\\n]"
    if op is sre.IN:
        return _set(argument, fold)
    if op is sre.AT:
        return _PLACES[argument]
    if op is sre.SUBPATTERN:
        return _group(argument, fold)
    if op is sre.GROUPREF:
        return rf"(?i:\g<{argument}>)" if fold else rf"\g<{argument}>"
    if op is sre.FAILURE:
        return "(?!)"
    bodies = [_sequence(body, fold) for body in _bodies(op, argument)]
    if op is sre.BRANCH:
        return f"(?:{'|'.join(bodies)})"
    if op in _REPEATS:
        low, high, _ = argument
        most = "" if high is sre.MAXREPEAT else high
        return f"(?:{bodies[0]}){{{low},{most}}}{_REPEATS[op]}"
    if op is getattr(sre, "ATOMIC_GROUP", None):
        return f"(?>{bodies[0]})"
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        sign = "=" if op is sre.ASSERT else "!"
        return f"(?{'<' if argument[0] < 0 else ''}{sign}{bodies[0]})"
    if op is sre.GROUPREF_EXISTS:
        return f"(?({argument[0]}){'|'.join(bodies)})"
    raise NotImplementedError(str(op))


def _group(argument: Any, fold: bool | None) -> str:
    number, on, off, body = argument
    if (on | off) & (re.ASCII | re.UNICODE):
        raise NotImplementedError("flags a or u for a part of the pattern")
    if (on | off) & re.IGNORECASE:
        fold = bool(on & re.IGNORECASE)
    return f"{'(' if number is not None else '(?:'}{_sequence(body, fold)})"


def _set(items: list[tuple[Any, Any]], fold: bool | None) -> str:
    negated = items[0][0] is sre.NEGATE
    members = []
    newline = False
    for op, argument in items[negated:]:
        if op is sre.LITERAL:
            newline |= argument == _NEWLINE
            members += _cases(argument) if fold else [_character(argument)]
        elif op is sre.RANGE:
            low, high = argument
            newline |= low <= _NEWLINE <= high
            members.append(f"{_character(low)}-{_character(high)}")
            if fold:
                members += {case for code in range(low, min(high, 0x24F) + 1) for case in _cases(code)}
        else:
            newline |= argument in _WITH_NEWLINE
            members.append(_SETS[argument])
    inside = "".join(members)
    if negated:
        return f"[^\\n{inside}]"
    return f"(?!\\n)[{inside}]" if newline else f"[{inside}]"


def _cases(code: int) -> list[str]:
    character = chr(code)
    cases = {
        character,
        character.lower(),
        character.upper(),
        {"k": "\u212a", "s": "\u017f"}.get(character.lower(), ""),
    }
    return sorted(_character(ord(case)) for case in cases if len(case) == 1)


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
