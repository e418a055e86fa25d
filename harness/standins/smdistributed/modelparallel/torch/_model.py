"""`smp.DistributedModel`, and what tells where a model is to be cut: without effect at degree 1."""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...dataparallel.torch.parallel.distributed import DistributedDataParallel
from . import _core
from ._core import state

PARTIAL = "_smp_is_partial"


class _Handle:
    """Takes a hook off again."""

    def __init__(self, hooks: OrderedDict[int, Any], key: int) -> None:
        self._hooks, self._key = weakref.ref(hooks), key

    def remove(self) -> None:
        hooks = self._hooks()
        if hooks is not None:
            hooks.pop(self._key, None)


class _Hooks(OrderedDict):  # type: ignore[type-arg]
    """Can be referred to weakly."""


class DistributedModel(torch.nn.Module):
    """A model that steps run. Placed on this rank's GPU, and averaged over the ranks by PyTorch's DDP.

    Arguments that are about tracing and cutting are taken and have no effect.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        average_grads_across_microbatches: bool = True,
        broadcast_buffers: bool = True,
        bucket_cap_mb: int = 25,
        gradient_as_bucket_view: bool = False,
        **_without_effect: Any,
    ) -> None:
        super().__init__()
        if state.config is None:
            raise RuntimeError("smp.init() must be called before smp.DistributedModel is made")
        if state.model is not None:
            raise RuntimeError("a script may have one smp.DistributedModel")
        self.module = module.to(_core.device())
        self._average = average_grads_across_microbatches
        self._hooks = _Hooks()
        self._partitioned = False
        # Not as an attribute of the module: its parameters would be there twice.
        self._replica: list[Any] = []
        if _core.size() > 1:
            devices = [_core.device()] if _core.device().type == "cuda" else None
            self._replica = [
                DistributedDataParallel(
                    self.module,
                    device_ids=devices,
                    broadcast_buffers=broadcast_buffers,
                    bucket_cap_mb=bucket_cap_mb,
                    gradient_as_bucket_view=gradient_as_bucket_view,
                )
            ]
        state.model = self
        if state.resume is not None:
            state.resume.into_model(self)

    @property
    def partitioned(self) -> bool:
        """Whether a step has run."""
        return self._partitioned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._in_step("called")
        if not self._partitioned:
            self._partitioned = True
            for hook in list(self._hooks.values()):
                hook(self, state.optimizer)
        place = _core.device()
        if place.type == "cuda":
            args, kwargs = _moved(args, place), _moved(kwargs, place)
        return (self._replica[0] if self._replica else self.module)(*args, **kwargs)

    def backward(self, tensors: Any, grad_tensors: Any = None) -> None:
        """As torch.autograd.backward; the gradients are the mean over the microbatches."""
        self._in_step("asked for backward")
        parts = list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]
        count = state.microbatches if self._average else 1
        if grad_tensors is None:
            given = [torch.ones_like(each) / count for each in parts]
        else:
            listed = list(grad_tensors) if isinstance(grad_tensors, (list, tuple)) else [grad_tensors]
            given = [each / count for each in listed]
        torch.autograd.backward(parts, given)

    def _in_step(self, what: str) -> None:
        if state.microbatch is None:
            raise RuntimeError(f"a smp.DistributedModel may be {what} only inside a @smp.step function")

    def no_sync(self) -> Any:
        """Gradients stay on their ranks meanwhile."""
        return self._replica[0].no_sync() if self._replica else contextlib.nullcontext()

    def join(self, **options: Any) -> Any:
        """As DistributedDataParallel's, for ranks that have unequally many batches."""
        return self._replica[0].join(**options) if self._replica else contextlib.nullcontext()

    def register_comm_hook(self, hook_state: Any, hook: Callable[..., Any]) -> None:
        """As DistributedDataParallel's."""
        if self._replica:
            self._replica[0].register_comm_hook(hook_state, hook)

    def register_post_partition_hook(self, hook: Callable[..., Any]) -> _Handle:
        """Call `hook(model, optimizer)` before the first forward pass."""
        key = len(self._hooks)
        self._hooks[key] = hook
        return _Handle(self._hooks, key)

    # The whole model is every rank's part of it.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def local_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """state_dict, marked as a part."""
        found = self.module.state_dict(*args, **kwargs)
        found[PARTIAL] = True
        return found

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        given = {name: value for name, value in state_dict.items() if name != PARTIAL}
        return self.module.load_state_dict(given, *args, **kwargs)

    def local_parameters(self, recurse: bool = True) -> Iterator[Any]:
        """All parameters."""
        return self.parameters(recurse)

    def local_named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[Any]:
        """All parameters, with their names in the module."""
        return self.module.named_parameters(prefix, recurse)

    def local_buffers(self, recurse: bool = True) -> Iterator[Any]:
        """All buffers."""
        return self.buffers(recurse)

    def local_named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[Any]:
        """All buffers, with their names in the module."""
        return self.module.named_buffers(prefix, recurse)

    def local_modules(self) -> Iterator[Any]:
        """All modules."""
        return self.module.modules()

    def local_named_modules(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """All modules, with their names."""
        return iter(self.module.named_modules(*args, **kwargs))


def _moved(value: Any, place: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(place)
    if isinstance(value, dict):
        return {key: _moved(item, place) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_moved(item, place) for item in value)
    return value


@contextlib.contextmanager
def partition(index: int) -> Iterator[None]:
    """Modules made inside belong to that partition: there is only 0."""
    if index:
        raise ValueError(f"partition {index}: the job has one, number 0")
    yield


@contextlib.contextmanager
def tensor_parallelism(enabled: bool = True, **_without_effect: Any) -> Iterator[None]:
    """No effect at degree 1."""
    del enabled
    yield


@contextlib.contextmanager
def delay_param_initialization(enabled: bool = True) -> Iterator[None]:
    """No effect: parameters are made where the script makes them."""
    del enabled
    yield


@contextlib.contextmanager
def model_creation(
    tensor_parallelism: bool = False, dtype: torch.dtype | None = None, **_without_effect: Any
) -> Iterator[None]:
    """Models made inside have parameters of `dtype`."""
    del tensor_parallelism
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def set_partition(module: Any, index: int) -> None:
    """As `partition`, for a module that is there."""
    del module
    if index:
        raise ValueError(f"partition {index}: the job has one, number 0")


def set_activation_checkpointing(module: Any, **_without_effect: Any) -> None:
    """No effect on results: activations are kept here."""
    del module
