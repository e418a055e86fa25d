"""The model-parallel library (SMP), version 1's API. `__version__` names the stand-in: it is no release of AWS's."""

__version__ = "0+harness"
