"""How a service refuses: AWS's error code, its sentence, its HTTP status."""

from __future__ import annotations

__all__ = ["ServiceError", "unknown_operation"]


class ServiceError(Exception):
    """An operation was refused, as the service would refuse it. No error of ours: clients get it as AWS's."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def unknown_operation(service: str, operation: str) -> ServiceError:
    """What is not here is told, with a 400: a 5xx would be tried again, up to eleven times."""
    return ServiceError(
        "UnknownOperationException",
        f"the harness doesn't answer {operation} of {service}: nothing was done, and nothing left this machine",
    )
