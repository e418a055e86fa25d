"""`smp.step`: a function that runs once for each microbatch, and what it gives back."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ._core import state

_BOXES = (list, tuple, set)


class StepOutput:
    """One tensor of a step, for every microbatch."""

    def __init__(self, outputs: list[torch.Tensor]) -> None:
        self.outputs = outputs

    def reduce_sum(self) -> torch.Tensor:
        """Their sum."""
        return torch.stack(self.outputs).sum(dim=0)

    def reduce_mean(self) -> torch.Tensor:
        """Their mean."""
        return self.reduce_sum() / len(self.outputs)

    def concat(self) -> torch.Tensor:
        """One after the other, along the batch."""
        return torch.cat(self.outputs)

    def stack(self) -> torch.Tensor:
        """In a new first dimension."""
        return torch.stack(self.outputs)


def step(
    function: Callable[..., Any] | None = None,
    *,
    non_split_inputs: list[str] | tuple[str, ...] = (),
    input_split_axes: dict[str, int] | None = None,
    detach_outputs: bool = True,
) -> Any:
    """Decorates a forward and a backward pass: every tensor given is cut into the job's microbatches."""
    if function is None:
        return functools.partial(
            step,
            non_split_inputs=non_split_inputs,
            input_split_axes=input_split_axes,
            detach_outputs=detach_outputs,
        )
    decorated, signature = function, inspect.signature(function)
    axes = input_split_axes or {}

    @functools.wraps(decorated)
    def run(*args: Any, **kwargs: Any) -> Any:
        if state.config is None:
            raise RuntimeError("smp.init() must be called before a step runs")
        bound = signature.bind(*args, **kwargs)
        count = state.microbatches
        results = []
        for number in range(count):
            given = inspect.BoundArguments(signature, bound.arguments.copy())
            for name, value in bound.arguments.items():
                if name not in non_split_inputs and count > 1:
                    given.arguments[name] = _slice(value, count, number, axes.get(name, 0))
            state.microbatch = number
            try:
                # The gradients of the replicas meet once, with the last microbatch.
                quiet = state.model is not None and number < count - 1
                with state.model.no_sync() if quiet else contextlib.nullcontext():
                    results.append(decorated(*given.args, **given.kwargs))
            finally:
                state.microbatch = None
        return _joined(results, detach_outputs)

    return run


def _slice(value: Any, count: int, number: int, axis: int) -> Any:
    if hasattr(value, "smp_slice"):
        return value.smp_slice(count, number, axis)
    if isinstance(value, torch.Tensor):
        if value.dim() <= axis:
            return value
        length = value.size(axis)
        if length % count:
            raise ValueError(
                f"a batch of {length} can't be cut into {count} microbatches: their sizes must be equal"
            )
        return value.narrow(axis, number * (length // count), length // count)
    if isinstance(value, dict):
        return {key: _slice(item, count, number, axis) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_slice(item, count, number, axis) for item in value))
    if isinstance(value, _BOXES):
        return type(value)(_slice(item, count, number, axis) for item in value)
    return value


def _joined(results: list[Any], detach: bool) -> Any:
    """The results of all microbatches in the shape of one: tensors as StepOutput, all else the first's."""
    first = results[0]
    if isinstance(first, torch.Tensor):
        return StepOutput([each.detach() if detach else each for each in results])
    if isinstance(first, dict):
        return {key: _joined([each[key] for each in results], detach) for key in first}
    if isinstance(first, (list, tuple)):
        parts = [_joined(list(column), detach) for column in zip(*results)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first
