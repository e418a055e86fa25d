"""The debug loop: watch, debugger, shell, and what a failed job left to look at."""

from __future__ import annotations
