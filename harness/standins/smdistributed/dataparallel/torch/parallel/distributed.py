"""The older API's DistributedDataParallel."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .. import distributed as _distributed  # noqa: F401

_Native = torch.nn.parallel.DistributedDataParallel


class DistributedDataParallel(_Native):
    """PyTorch's, with the arguments that AWS's takes; `device_ids` has no meaning for a module on CPU."""

    def __init__(
        self,
        module: torch.nn.Module,
        device_ids: Any = None,
        output_device: Any = None,
        broadcast_buffers: bool = True,
        **options: Any,
    ) -> None:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            device_ids = output_device = None
        # The argument's newer name in PyTorch; the old one is a warning there.
        newer = "forward_sync_buffers" in inspect.signature(_Native.__init__).parameters
        options["forward_sync_buffers" if newer else "broadcast_buffers"] = broadcast_buffers
        super().__init__(module, device_ids=device_ids, output_device=output_device, **options)
