"""The command line: parses words, calls the other rooms, prints. Heavy imports happen in the commands."""

from harness.cli._app import main

__all__ = ["main"]
