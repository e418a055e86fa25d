"""`distribution` → the hyperparameters that switch the toolkit's launchers on (contract: H10)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from harness.spec._draft import Draft, Words
from harness.spec._table import kind, unknown

_STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "smdistributed": ("dataparallel", "modelparallel"),
    "torch_distributed": ("enabled",),
    "pytorchddp": ("enabled", "custom_mpi_options"),
    "mpi": ("enabled", "processes_per_host", "custom_mpi_options"),
    "parameter_server": ("enabled",),
}
_SMD: Mapping[str, tuple[str, ...]] = {
    "dataparallel": ("enabled", "custom_mpi_options"),
    "modelparallel": ("enabled", "parameters"),
}


def launcher(words: Words, instance_type: str | None, groups: list[str]) -> dict[str, Any]:
    """Hyperparameters, not yet encoded, that SDK v2's PyTorch estimator adds for `distribution`.

    Raises:
        SpecError: an unknown strategy, or two that exclude each other.
    """
    given = _checked(words, words.get("distribution", {}))
    if not given:
        return {}
    chosen = _chosen_groups(words, given, groups)
    if "pytorchddp" in given:
        if "smdistributed" in given:
            raise words.error("distribution can't have both pytorchddp and smdistributed")
        given["smdistributed"] = {"dataparallel": given.pop("pytorchddp")}
    added: dict[str, Any] = {}
    torch = _enabled(given, "torch_distributed")
    if not torch or "smdistributed" in given:
        added = _launchers(given, chosen, instance_type)
    if torch:
        added["sagemaker_torch_distributed_enabled"] = True
        if instance_type is not None:
            added["sagemaker_instance_type"] = instance_type
    elif chosen and not (_enabled(given, "mpi") or _enabled(given, "smdistributed", "dataparallel")):
        raise words.error("distribution.instance_groups is given, but no strategy that uses it is enabled")
    return added


def lint(words: Words, draft: Draft, image: str) -> None:
    """What SDK v2 would refuse or AWS's lists leave out (contract: K18–K21); warnings, not errors."""
    given = words.get("distribution", {})
    if not isinstance(given, Mapping):
        return
    version = _version(str(words.get("framework_version", "")) or image)
    smd, torch = given.get("smdistributed", {}), _enabled(given, "torch_distributed")
    if _enabled(given, "smdistributed", "dataparallel") and version and not (1, 6) <= version <= (2, 2):
        draft.warnings.append(  # contract: K19
            f"SDK v2 accepts smdistributed.dataparallel with PyTorch 1.6 to 2.2, not {version[0]}.{version[1]}"
        )
    if smd and not torch and words.get("instance_type") == "ml.p5.48xlarge":  # contract: K18
        draft.warnings.append(
            "SDK v2 refuses smdistributed on ml.p5.48xlarge unless torch_distributed is enabled too"
        )
    if torch and version and version < (1, 13):  # contract: K20
        draft.warnings.append(
            f"SDK v2 accepts torch_distributed on GPUs from PyTorch 1.13.1 on, not {version[0]}.{version[1]}"
        )
    if torch and not str(words.get("entry_point", ".py")).endswith(".py"):  # contract: K20, H13
        draft.warnings.append(
            "torch_distributed starts only .py entry points; the toolkit fails on any other"
        )
    if "instance_groups" in words and version and version < (1, 10):  # contract: K21
        draft.warnings.append(
            f"heterogeneous clusters need PyTorch 1.10 or later, not {version[0]}.{version[1]}"
        )


def _launchers(given: Mapping[str, Any], chosen: list[str], instance_type: str | None) -> dict[str, Any]:
    added: dict[str, Any] = {}
    if chosen:
        added["sagemaker_distribution_instance_groups"] = chosen
    if "parameter_server" in given:
        added["sagemaker_parameter_server_enabled"] = _enabled(given, "parameter_server")
    if "mpi" in given:
        mpi = given["mpi"]
        added["sagemaker_mpi_enabled"] = _enabled(given, "mpi")
        if mpi.get("processes_per_host"):
            added["sagemaker_mpi_num_of_processes_per_host"] = mpi["processes_per_host"]
        added["sagemaker_mpi_custom_mpi_options"] = mpi.get("custom_mpi_options", "")
    if "smdistributed" in given:
        model = given["smdistributed"].get("modelparallel", {})
        if model.get("enabled") and model.get("parameters"):
            added["mp_parameters"] = model["parameters"]
        data = given["smdistributed"].get("dataparallel", {})
        added["sagemaker_distributed_dataparallel_enabled"] = data.get("enabled", False)
        added["sagemaker_instance_type"] = instance_type
        if data.get("enabled"):
            added["sagemaker_distributed_dataparallel_custom_mpi_options"] = data.get(
                "custom_mpi_options", ""
            )
    return added


def _chosen_groups(words: Words, given: Mapping[str, Any], groups: list[str]) -> list[str]:
    chosen = list(given.get("instance_groups", ()))
    strange = [name for name in chosen if name not in groups]
    if strange:
        raise words.error(
            f"distribution.instance_groups has {', '.join(strange)}, which instance_groups has not"
            f" ({', '.join(groups) or 'there are none'})"
        )
    if len(groups) > 1 and len(chosen) != 1:
        raise words.error("distribution.instance_groups must name exactly one of the instance groups")
    return chosen or (groups if len(groups) == 1 else [])


def _checked(words: Words, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise words.error(f"distribution must be a table, not {kind(given)}")
    for strategy, options in given.items():
        if strategy == "instance_groups":
            continue
        _table(words, options, f"distribution.{strategy}", strategy, _STRATEGIES, "[distribution]")
        if strategy == "smdistributed":
            for library, its in options.items():
                _table(words, its, f"distribution.smdistributed.{library}", library, _SMD, "[distribution]")
    return dict(given)


def _table(
    words: Words, options: Any, where: str, name: str, known: Mapping[str, tuple[str, ...]], above: str
) -> None:
    if name not in known:
        raise words.error(unknown(name, above, tuple(known), tuple(known)))
    if not isinstance(options, Mapping):
        raise words.error(f"{where} must be a table such as {{enabled = true}}, not {kind(options)}")
    for key in options:
        if key not in known[name]:
            raise words.error(unknown(key, f"[{where}]", known[name], known[name]))


def _enabled(given: Mapping[str, Any], *path: str) -> bool:
    place: Any = given
    for key in (*path, "enabled"):
        if not isinstance(place, Mapping):
            return False
        place = place.get(key, {} if key != "enabled" else False)
    return bool(place)


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text) or re.search(r"pytorch-training:(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def encode(words: Words, name: str, value: Any) -> str:
    """A hyperparameter as SDK v2's framework estimators encode it (contract: C6).

    Raises:
        SpecError: JSON has no such value.
    """
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        raise words.error(
            f"hyperparameter {name} can't be written as JSON: {value!r} is {kind(value)}; give it as a string"
        ) from None
