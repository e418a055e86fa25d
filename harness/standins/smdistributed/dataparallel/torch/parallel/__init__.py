"""The older API's module wrapper, in `.distributed`."""

from .distributed import DistributedDataParallel

__all__ = ["DistributedDataParallel"]
