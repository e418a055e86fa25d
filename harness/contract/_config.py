"""The files of /opt/ml/input/config, as objects (contract: group C)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from harness.contract._hosts import HostView
from harness.contract._paths import checkpoint_path
from harness.model import JsonObject

if TYPE_CHECKING:
    from harness.contract._tree import ChannelView

__all__ = ["TENSORBOARD", "TENSORS", "config_files", "encode"]

TENSORS: Final = "/opt/ml/output/tensors"
TENSORBOARD: Final = "/opt/ml/output/tensorboard"

_CLUTTER: Final = ("init-config.json", "trainingjobconfig.json", "upstreamoutputdataconfig.json")
"""Files of the platform's own, with unknown content (contract: C29)."""


def encode(value: object) -> bytes:
    """Compact JSON, as the platform writes it (contract: C31)."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def config_files(
    request: JsonObject, host: HostView, channels: Iterable[ChannelView], *, clutter: bool
) -> dict[str, Any]:
    """File name → what it holds."""
    files: dict[str, Any] = {
        "hyperparameters.json": _hyperparameters(request),
        "resourceconfig.json": _resource_config(host),
        "inputdataconfig.json": {channel.name: _channel(channel) for channel in channels},
        # contract: C28. Its schema is unknown; empty is what a job without definitions has.
        "metric-definition-regex.json": {},
    }
    checkpoints = checkpoint_path(request)
    if checkpoints is not None:
        files["checkpointconfig.json"] = {"LocalPath": str(checkpoints)}  # contract: C23
    if (hook := request.get("DebugHookConfig")) is not None:
        files["debughookconfig.json"] = _debug_hook(hook)
    if (profiler := request.get("ProfilerConfig")) is not None:
        files["profilerconfig.json"] = _profiler(profiler)
    if (board := request.get("TensorBoardOutputConfig")) is not None:
        files["tensorboardoutputconfig.json"] = {  # contract: C25
            "LocalPath": board.get("LocalPath") or TENSORBOARD,
            "S3OutputPath": board["S3OutputPath"],
        }
    if clutter:
        files |= {name: {} for name in _CLUTTER}
    return files


def _hyperparameters(request: JsonObject) -> dict[str, str]:
    """The request's own, every value a string (contract: C1, C2).

    sagemaker_submit_directory keeps its URI, as in the cloud: the code lies in /opt/ml/code before the
    host starts, and the toolkit downloads nothing into a code directory that isn't empty.
    """
    return dict(request.get("HyperParameters") or {})


def _resource_config(host: HostView) -> JsonObject:
    """contract: C8, C10, C11, C12, C13, C14"""
    return {
        "current_host": host.name,
        "current_instance_type": host.instance_type,
        "current_group_name": host.group,
        "hosts": list(host.hosts),
        "instance_groups": [
            {
                "instance_group_name": group.name,
                "instance_type": group.instance_type,
                "hosts": list(group.hosts),
            }
            for group in host.groups
        ],
        "network_interface_name": host.interface,
    }


def _channel(channel: ChannelView) -> JsonObject:
    """contract: C17, C18, C19, C20, C22"""
    entry: JsonObject = {
        "TrainingInputMode": channel.mode,
        "S3DistributionType": channel.distribution or "FullyReplicated",
        "RecordWrapperType": channel.record_wrapper or "None",
    }
    if channel.content_type is not None:
        entry["ContentType"] = channel.content_type
    return entry


def _debug_hook(hook: Mapping[str, Any]) -> JsonObject:
    """contract: C24"""
    return {
        "LocalPath": hook.get("LocalPath") or TENSORS,
        "S3OutputPath": hook["S3OutputPath"],
        "HookParameters": hook.get("HookParameters"),
        "CollectionConfigurations": [
            {
                "CollectionName": collection.get("CollectionName"),
                "CollectionParameters": collection.get("CollectionParameters") or {},
            }
            for collection in hook.get("CollectionConfigurations") or ()
        ],
    }


def _profiler(profiler: Mapping[str, Any]) -> JsonObject:
    """contract: C26, C30"""
    config: JsonObject = {
        "ProfilingIntervalInMilliseconds": profiler.get("ProfilingIntervalInMilliseconds", 500),
        "ProfilingParameters": profiler.get("ProfilingParameters") or {},
        "DisableProfiler": profiler.get("DisableProfiler", False),
    }
    if "S3OutputPath" in profiler:
        config["S3OutputPath"] = profiler["S3OutputPath"]
    return config
