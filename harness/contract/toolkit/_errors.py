"""The toolkit's errors: what ends up in /opt/ml/output/failure (contract: G13, G14)."""

from __future__ import annotations

__all__ = [
    "ClientError",
    "CommandError",
    "CompilerConfigurationError",
    "ExecuteUserScriptError",
    "InstallModuleError",
    "InstallRequirementsError",
]


class ClientError(Exception):
    """The user's fault: exit code 1, and its text is the failure file's."""


class CompilerConfigurationError(Exception):
    """A job that PyTorch XLA can't run. As in AWS's toolkit it counts as a crash of the toolkit itself."""


class CommandError(ClientError):
    """A command ended with another exit code than 0, or couldn't be started."""

    def __init__(self, command: str, code: int | None = None, output: str = "", extra: str | None = None):
        lines = [f"{type(self).__name__}:", f"ExitCode {code}", f'ErrorMessage "{output}"']
        if extra is not None:
            lines.append(f'ExtraInfo "{extra}"')
        lines.append(f'Command "{command}"')
        super().__init__("\n".join(lines).strip())


class ExecuteUserScriptError(CommandError):
    """The user's script."""


class InstallRequirementsError(CommandError):
    """`pip install -r requirements.txt`."""


class InstallModuleError(CommandError):
    """`pip install .`, for a code directory with a setup.py."""
