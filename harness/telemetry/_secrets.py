"""What is not to be written down: values whose names look like secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["HIDDEN", "hide_arguments", "is_secret"]

HIDDEN: Final = "********"
_WORDS: Final = ("SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "APIKEY", "PRIVATE")
_LAST_WORDS: Final = ("TOKEN", "_KEY", "_PWD")
"""Only at the end: `max_tokens` and `tokenizer` are no secrets."""
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
