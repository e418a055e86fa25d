"""What is not to be written down: values whose names look like secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

__all__ = ["HIDDEN", "hide_arguments", "hider", "is_secret"]

HIDDEN: Final = "********"
_WORDS: Final = ("SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "APIKEY", "PRIVATE")
_LAST_WORDS: Final = ("TOKEN", "_KEY", "_PWD")
"""Only at the end: `max_tokens` and `tokenizer` are no secrets."""
_SHORTEST: Final = 4
"""Letters of a value that is looked for: shorter ones are everywhere."""
_NAMES: Final = frozenset(("file", "path", "log", "name", "job", "host", "function", "type", "kind"))
"""Members that name things, by which they are found again."""
_OPTION: Final = re.compile(r"^-{1,2}([A-Za-z][\w.-]*)(=.*)?$", re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether a variable, hyperparameter or option of that name looks as if it held a secret."""
    words = re.sub(r"[-.]", "_", name).upper()
    return any(word in words.replace("_", "") for word in _WORDS) or words.endswith(_LAST_WORDS)


def hide_arguments(words: Sequence[str]) -> list[str]:
    """A command line with the values of options hidden that look like secrets; `NAME=value` words too."""
    shown: list[str] = []
    hide = False
    for word in words:
        option = _OPTION.match(word)
        name, equals, _ = word.partition("=")
        if hide and not option:
            shown.append(HIDDEN)
            hide = False
        elif option and option[2] is None:
            shown.append(word)
            hide = is_secret(option[1])
            continue
        elif equals and is_secret(name.lstrip("-")):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word)
        hide = False
    return shown


def hider(values: Iterable[str]) -> Callable[[Any], Any]:
    """Takes a text, or a JSON document with texts in it, and gives it without these values wherever they stand as
    a word of their own; what the members that name things say is left as it is."""
    words = sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)
    if not words:
        return lambda document: document
    found = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")

    def hide(document: Any) -> Any:
        if isinstance(document, str):
            return found.sub(HIDDEN, document)
        if isinstance(document, dict):
            return {key: value if key in _NAMES else hide(value) for key, value in document.items()}
        if isinstance(document, (list, tuple)):
            return [hide(each) for each in document]
        return document

    return hide
