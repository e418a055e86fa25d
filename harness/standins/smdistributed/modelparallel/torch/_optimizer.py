"""`smp.DistributedOptimizer`: at degree 1 the optimizer itself."""

from __future__ import annotations

from typing import Any

import torch

from . import _core
from ._model import PARTIAL


class DistributedOptimizer:
    """Gives back the optimizer, which has `local_state_dict` then and knows its way around parts.

    Loss scales are those of 16-bit training, which is refused with the job's `fp16`.
    """

    def __new__(  # type: ignore[misc]
        cls, optimizer: torch.optim.Optimizer, *_scales: Any, **_more: Any
    ) -> torch.optim.Optimizer:
        if (_core.state.config or {}).get("fp16"):
            raise RuntimeError(
                "[harness] smdistributed.modelparallel: fp16 is on, and the stand-in trains in the model's own type: "
                "set it to false to run here, or run it on SageMaker"
            )
        whole, load = optimizer.state_dict, optimizer.load_state_dict

        def local_state_dict() -> dict[str, Any]:
            return {**whole(), PARTIAL: True}

        def load_state_dict(state_dict: dict[str, Any]) -> None:
            load({name: value for name, value in state_dict.items() if name != PARTIAL})

        optimizer.local_state_dict = local_state_dict  # type: ignore[attr-defined]
        optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign]
        _core.state.optimizer = optimizer
        if _core.state.resume is not None:
            _core.state.resume.into_optimizer(optimizer)
        return optimizer
