"""Debugger, profiler and TensorBoard settings, with the defaults that SDK v2 fills in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.model import JsonObject
from harness.spec._draft import Draft, Words
from harness.spec._table import spelled

# Regions where SDK v2 leaves both off (fw_utils.py, v2.257).
_WITHOUT = frozenset(
    [
        "us-iso-east-1",
        "us-isob-east-1",
        "ap-southeast-3",
        "ap-southeast-4",
        "eu-south-2",
        "me-central-1",
        "ap-south-2",
        "eu-central-2",
        "us-gov-east-1",
    ]
)
_PLACES: Mapping[str, str] = {"s3_output_path": "S3OutputPath", "container_local_output_path": "LocalPath"}
_HOOK = ("S3OutputPath", "LocalPath", "HookParameters", "CollectionConfigurations")
_PROFILER = ("S3OutputPath", "ProfilingIntervalInMilliseconds", "ProfilingParameters", "DisableProfiler")


def debugging(
    words: Words, draft: Draft, *, output_path: str, region: str, instance_type: str | None
) -> None:
    """Put DebugHookConfig, ProfilerConfig and TensorBoardOutputConfig as the SDK would send them."""
    hook = _hook(words, output_path, region)
    if hook is not None:
        draft.put("DebugHookConfig", hook, words.source("debugger_hook_config"))
    draft.put(
        "ProfilerConfig",
        _profiler(words, output_path, region, instance_type),
        words.source("profiler_config"),
    )
    if "tensorboard_output_config" in words:
        board = spelled(
            words,
            words.get("tensorboard_output_config"),
            "tensorboard_output_config",
            ("S3OutputPath", "LocalPath"),
            _PLACES,
        )
        draft.put("TensorBoardOutputConfig", board, words.source("tensorboard_output_config"))


def _hook(words: Words, output_path: str, region: str) -> JsonObject | None:
    given = words.get("debugger_hook_config")
    supported = region not in _WITHOUT
    if given is False or (not supported and given is None):
        return None
    if not supported:
        raise words.error(f"debugger_hook_config is given, but region {region} has no SageMaker Debugger")
    if words.get("checkpoint_s3_uri") and words.get("checkpoint_local_path") and "entry_point" in words:
        # The SDK turns the hook off for PyTorch jobs that checkpoint to a path of their own.
        return None
    table = {} if given is None or given is True else given
    hook = spelled(words, table, "debugger_hook_config", _HOOK, {**_PLACES, "collection_configs": _HOOK[3]})
    collections = [
        spelled(
            words,
            each,
            f"debugger_hook_config.collection_configs[{n}]",
            ("CollectionName", "CollectionParameters"),
            {"name": "CollectionName", "parameters": "CollectionParameters"},
        )
        for n, each in enumerate(hook.get("CollectionConfigurations") or ())
    ]
    return {"S3OutputPath": output_path, **hook, "CollectionConfigurations": collections}


def _profiler(words: Words, output_path: str, region: str, instance_type: str | None) -> JsonObject:
    aliases = {
        "s3_output_path": "S3OutputPath",
        "system_monitor_interval_millis": "ProfilingIntervalInMilliseconds",
    }
    given = words.get("profiler_config")
    profiler = {} if given is None else spelled(words, given, "profiler_config", _PROFILER, aliases)
    off = bool(words.get("disable_profiler"))
    if off and given is not None and not profiler.get("DisableProfiler"):
        raise words.error(
            "disable_profiler is true, but profiler_config does not say disable_profiler = true"
        )
    if given is None:
        trainium = re.match(r"ml\.trn", instance_type or "")
        off = off or region in _WITHOUT or bool(trainium)
        return {"DisableProfiler": True} if off else {"S3OutputPath": output_path, "DisableProfiler": False}
    off = profiler.setdefault("DisableProfiler", False)
    if not off:
        profiler.setdefault("S3OutputPath", output_path)
    else:
        profiler.pop("S3OutputPath", None)
    return profiler
