"""The image URI: given, or from the official SDK's tables."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.home import Home
from harness.spec._draft import Words

EXTRA = "pip install 'sagemaker-harness[sagemaker]'"


def find_image(words: Words, *, region: str, instance_type: str | None) -> str:
    """`image_uri`, or what SDK v2 would take for `framework_version` and `py_version`.

    The SDK's answer is kept in the state directory: importing it costs seconds, and once is enough.

    Raises:
        SpecError: neither is given, the SDK is needed and not installed, or it knows no such image.
    """
    if "image_uri" in words:
        return str(words.get("image_uri"))
    version, python = words.get("framework_version"), words.get("py_version")
    if version is None or python is None:
        raise words.error(
            "no image: give image_uri, or both framework_version and py_version (of AWS's PyTorch images)"
        )
    distribution = words.get("distribution")
    key = json.dumps([region, version, python, instance_type, distribution], sort_keys=True)
    cache = Home.find().cache / "image-uris.json"
    known = _kept(cache)
    if key not in known:
        known[key] = _retrieve(words, region, version, python, instance_type, distribution)
        _keep(cache, known)
    return known[key]


def _retrieve(
    words: Words, region: str, version: str, python: str, instance_type: str | None, distribution: Any
) -> str:
    with _silence():
        try:
            from sagemaker import image_uris
        except ImportError:
            raise words.error(
                f"framework_version {version} and py_version {python} are looked up in the SageMaker SDK's image "
                f"tables, and the SDK is not installed: run `{EXTRA}`, or give image_uri"
            ) from None
        try:
            uri: str = image_uris.get_training_image_uri(
                region=region,
                framework="pytorch",
                framework_version=version,
                py_version=python,
                distribution=distribution,
                instance_type=instance_type,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise words.error(
                f"the SageMaker SDK knows no PyTorch image for framework_version {version}, py_version {python}, "
                f"{instance_type} in {region}: {error}"
            ) from error
    return uri


@contextmanager
def _silence() -> Iterator[None]:
    """The SDK logs and warns as it is imported, about things that have nothing to do with the question."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _kept(cache: Path) -> dict[str, str]:
    try:
        known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _keep(cache: Path, known: Mapping[str, str]) -> None:
    """A place that can't be written only means asking the SDK again."""
    import tempfile

    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=cache.parent, prefix=cache.name, encoding="utf-8", delete=False
        ) as file:
            json.dump(known, file, indent=1)
        Path(file.name).replace(cache)
    except OSError:
        return
