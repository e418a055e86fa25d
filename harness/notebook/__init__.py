"""The Jupyter extension, and a SageMaker session whose jobs run on this machine."""

from __future__ import annotations
