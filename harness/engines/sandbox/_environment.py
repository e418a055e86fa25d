"""The environment of a host: a container's base, what pip needs to reach its index, the launch's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from harness.engines.sandbox._interpreter import Interpreter
from harness.model import Gpu, HostLaunch

__all__ = ["HOME", "compose", "inherited", "pip_config", "pip_fallback"]

HOME = "/root"
"""As in AWS's images (contract: A19)."""

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_FORWARDED = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_FIND_LINKS", "PIP_NO_INDEX"),
    *("PIP_CERT", "PIP_CLIENT_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""All that a host inherits of the user's environment, and only what is set: without it `pip install -r
requirements.txt` can't reach an index from behind a proxy. A job without a network gets none of it."""

_PIP_CONFIGS = (".config/pip/pip.conf", ".pip/pip.conf")


def compose(
    launch: HostLaunch, python: Interpreter, user: Mapping[str, str], machine_has_gpus: bool
) -> dict[str, str]:
    """The whole environment of the host's process 1. `launch.environment` wins over everything else.

    LD_LIBRARY_PATH is taken over when it's set: it says where this machine's Python and CUDA libraries
    are, as an image's does.
    """
    environment = {
        "PATH": f"{python.executable.parent}:{_SYSTEM_PATH}:{HOME}/.local/bin",
        "HOME": HOME,
        "HOSTNAME": launch.hostname,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
    if python.managed:
        environment["PIP_BREAK_SYSTEM_PACKAGES"] = "1"
    environment |= inherited(launch, user)
    environment |= launch.environment
    for name, places in launch.prepend.items():
        environment[name] = f"{places}:{environment[name]}" if environment.get(name) else places
    if launch.gpus or machine_has_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = _visible(
            launch.gpus, launch.environment.get("CUDA_VISIBLE_DEVICES")
        )
    return environment


def inherited(launch: HostLaunch, user: Mapping[str, str]) -> dict[str, str]:
    """What a host gets of the user's own environment."""
    names = ("LD_LIBRARY_PATH", *(() if launch.network_isolated else _FORWARDED))
    return {name: user[name] for name in names if name in user}


def pip_config(user: Mapping[str, str]) -> Path | None:
    """The user's own pip.conf, which pip wouldn't find since HOME is another; None when there is none."""
    named = user.get("PIP_CONFIG_FILE")
    home = Path(user.get("HOME", "/"))
    candidates = [Path(named)] if named else [home / name for name in _PIP_CONFIGS]
    return next((path for path in candidates if path.is_file() and os.access(path, os.R_OK)), None)


def _visible(gpus: tuple[Gpu, ...], chosen: str | None) -> str:
    """The host's GPUs; if the job chose some of them, by their place in the host, those."""
    names = [gpu.uuid or str(gpu.index) for gpu in gpus]
    if chosen is None:
        return ",".join(names)
    picked = (item.strip() for item in chosen.split(","))
    return ",".join(
        names[int(item)] if item.isdigit() and int(item) < len(names) else item for item in picked
    )


def pip_fallback(python: Interpreter, environment: Mapping[str, str]) -> dict[str, str]:
    """What makes pip install into HOME and Python look there, where no layer can go over the interpreter."""
    prefix = f"{HOME}/.pip-prefix"
    places = [f"{prefix}/lib/python{python.version}/site-packages", environment.get("PYTHONPATH", "")]
    return {
        "PIP_PREFIX": prefix,
        "PYTHONPATH": ":".join(filter(None, places)),
        "PATH": f"{environment['PATH']}:{prefix}/bin",
    }
