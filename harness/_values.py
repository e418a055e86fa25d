"""`dataclass`, at a fifth of the standard one's cost to define a class.

`dataclasses` compiles six methods for each frozen class, half a millisecond of it, and our value objects are
many: that was a third of what a command imports. Here the methods are written once and shared. To readers, type
checkers, `fields`, `replace` and `asdict` there is no difference.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool, kw_only: bool) -> Callable[[type], type]:
        """`@dataclass(frozen=True, kw_only=True)`; of fields, all that isn't about `init` or `hash`."""
        if not frozen or not kw_only:
            raise TypeError("only for frozen keyword-only classes: for others take dataclasses.dataclass")
        return _define


__all__ = ["dataclass", "field"]


def _define(cls: Any) -> Any:
    cls = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=True)(cls)
    fields = dataclasses.fields(cls)
    cls._dataclass_names = {each.name for each in fields}
    cls._dataclass_compared = tuple(each.name for each in fields if each.compare)
    cls._dataclass_defaults = {
        each.name: each.default for each in fields if each.default is not dataclasses.MISSING
    }
    cls._dataclass_factories = {
        each.name: each.default_factory for each in fields if each.default_factory is not dataclasses.MISSING
    }
    cls.__signature__ = _Signature()
    for method in (_init, _repr, _eq, _hash, _setattr, _delattr):
        name = f"_{method.__name__}__"
        if name not in cls.__dict__:
            setattr(cls, name, method)
    return cls


class _Signature:
    """What help and completion show of the class; made when somebody asks."""

    def __get__(self, instance: object, cls: Any) -> inspect.Signature:
        from inspect import Parameter, Signature

        def parameter(each: dataclasses.Field[Any]) -> Parameter:
            made = each.default_factory is not dataclasses.MISSING
            default = Parameter.empty if each.default is dataclasses.MISSING else each.default
            return Parameter(
                each.name,
                Parameter.KEYWORD_ONLY,
                default=each.default_factory if made else default,
                annotation=each.type,
            )

        return Signature([parameter(each) for each in dataclasses.fields(cls)])


def _init(self: Any, /, **given: Any) -> None:
    cls = type(self)
    state = self.__dict__
    state.update(cls._dataclass_defaults)
    for name, make in cls._dataclass_factories.items():
        if name not in given:
            state[name] = make()
    state.update(given)
    if state.keys() != cls._dataclass_names:
        called = f"{cls.__qualname__}.__init__()"
        for name in given:
            if name not in cls._dataclass_names:
                raise TypeError(f"{called} got an unexpected keyword argument {name!r}")
        missing = [each.name for each in dataclasses.fields(cls) if each.name not in state]
        raise TypeError(f"{called} is missing {', '.join(map(repr, missing))}")


def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in dataclasses.fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return all(getattr(self, name) == getattr(other, name) for name in self._dataclass_compared)


def _hash(self: Any) -> int:
    return hash(tuple(getattr(self, name) for name in self._dataclass_compared))


def _setattr(self: object, name: str, value: object) -> None:
    del self, value
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: object, name: str) -> None:
    del self
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
