"""Run the exact SageMaker training job on the machine in front of you."""

from __future__ import annotations

__version__ = "0.1.0"
