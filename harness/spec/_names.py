"""Names that the SDK makes up: of jobs, and of the default bucket."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_LONGEST = 63  # contract: K1


def timestamped(base: str, now: datetime | None) -> str:
    """`<base>-YYYY-MM-DD-HH-MM-SS-mmm` in UTC, the base cut so that the whole has 63 characters."""
    moment = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    stamp = f"{moment:%Y-%m-%d-%H-%M-%S}-{moment.microsecond // 1000:03d}"
    return f"{base[: _LONGEST - len(stamp) - 1]}-{stamp}"


def base_of_image(image: str) -> str:
    """The image's repository, as far as a job name can hold it: `…/pytorch-training:2.0` → pytorch-training."""
    found = re.match(r"^(?:.+/)?([^:/@]+)(?:[:@].+)?$", image)
    repository = found[1] if found else image
    return re.sub(r"[^A-Za-z0-9-]+", "-", repository).strip("-") or "job"


def default_bucket(region: str, account: str) -> str:
    """The SDK's default bucket of an account."""
    return f"sagemaker-{region}-{account}"


def join(*parts: str) -> str:
    """Parts of a key joined by single slashes, empty ones left out."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))
