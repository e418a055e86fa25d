"""All that the toolkit knows of the job, read from /opt/ml and the environment (contract: D17–D25)."""

from __future__ import annotations

import json
import os
import sys

from . import _mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._log import Log

__all__ = ["Environment", "base_directory", "which"]

RESERVED = (
    "sagemaker_program",
    "sagemaker_submit_directory",
    "sagemaker_enable_cloudwatch_metrics",
    "sagemaker_region",
    "sagemaker_container_log_level",
    "sagemaker_job_name",
    "default_user_module_name",
    "_tuning_objective_metric",
    "sagemaker_s3_output",
)
"""Hyperparameters that are neither the script's nor the framework's (contract: D25)."""

LAUNCHERS = (
    "sagemaker_mpi_enabled",
    "sagemaker_parameter_server_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_torch_distributed_enabled",
)
"""Each of them makes the current group a distribution group (contract: D17, H11)."""


def base_directory() -> str:
    """/opt/ml, or what SAGEMAKER_BASE_DIR says (contract: B21)."""
    return os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")


class Environment:
    """A snapshot, taken once. Raises what a missing or broken configuration file raises.

    Sets SAGEMAKER_JOB_NAME, CURRENT_HOST and SAGEMAKER_REGION in os.environ (contract: D20).
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        # Told by the engine, not seen by the script: see the package's docstring.
        self.master_port = os.environ.pop("HARNESS_MASTER_PORT", "")
        self.shell = os.environ.pop("HARNESS_TOOLKIT_SHELL", "") == "1"
        self._extra_path = os.environ.pop("HARNESS_EXTRA_PATH", "").split(":")

        # In an image `python`, `pip` and `torchrun` are those of the toolkit's own interpreter.
        programs = os.path.dirname(sys.executable)
        path = os.environ.get("PATH", os.defpath).split(":")
        if programs not in path:
            os.environ["PATH"] = ":".join([programs, *path])

        base = base_directory()
        self.code_dir = os.path.join(base, "code")
        self.output_dir = os.path.join(base, "output")
        self.intermediate_dir = os.path.join(self.output_dir, "intermediate")
        self._base = base
        if not os.path.exists(self.code_dir):  # contract: B20
            os.makedirs(self.code_dir)
        int(os.environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", 20))  # refused when it isn't a number

        config = os.path.join(base, "input", "config")
        self.num_gpus = _gpus(log)
        self.resources = _read(os.path.join(config, "resourceconfig.json"))
        self.channels_config = _read(os.path.join(config, "inputdataconfig.json"))
        everything = self._read_hyperparameters(os.path.join(config, "hyperparameters.json"))

        self.hosts: list[str] = self.resources["hosts"]
        self.current_host: str = self.resources["current_host"]
        self.instance_type: str = self.resources.get("current_instance_type", "local")
        self.group: str = self.resources.get("current_group_name", "homogeneousCluster")
        self.interface: str = self.resources.get("network_interface_name", "eth0")
        self.num_neurons = _neurons(self.instance_type, log)

        reserved = {
            key: value for key, value in everything.items() if key in RESERVED or key.startswith("sagemaker_")
        }
        self.hyperparameters = {key: value for key, value in everything.items() if key not in reserved}
        self.framework_parameters = {key: value for key, value in reserved.items() if key not in RESERVED}
        os.environ["SAGEMAKER_JOB_NAME"] = reserved.get("sagemaker_job_name", "")
        os.environ["CURRENT_HOST"] = self.current_host
        os.environ["SAGEMAKER_REGION"] = (
            reserved.get("sagemaker_region", os.environ.get("AWS_DEFAULT_REGION")) or ""
        )

        program = os.environ.get("SAGEMAKER_PROGRAM")  # contract: A22
        self.entry_point = program or reserved.get("sagemaker_program")
        name = program if program is not None else str(reserved.get("sagemaker_program"))
        self.module_name = name[:-3] if name.endswith(".py") else name
        self.module_dir = str(reserved.get("sagemaker_submit_directory", self.code_dir))
        self.log_level = reserved.get("sagemaker_container_log_level", 20)
        self.s3_output = reserved.get("sagemaker_s3_output")
        self.framework_module = os.environ.get("SAGEMAKER_TRAINING_MODULE")
        self._read_groups()

    def _read_hyperparameters(self, path: str) -> dict[str, Any]:
        """Each value as JSON where it is JSON, as it is otherwise (contract: D24)."""
        found = {}
        for key, value in _read(path).items():
            try:
                found[key] = json.loads(value)
            except (ValueError, TypeError):
                self._log.info(
                    f"Failed to parse hyperparameter {key} value {value} to Json.\nReturning the value itself"
                )
                found[key] = value
        return found

    def _read_groups(self) -> None:
        """contract: D18, D19, H12"""
        groups = self.resources.get("instance_groups", [])
        if not groups:
            self._log.info("instance_groups entry not present in resource_config")
        self.groups = {group["instance_group_name"]: group for group in groups}
        self.group_names = [group["instance_group_name"] for group in groups]
        enabled = any(self.framework_parameters.get(name, False) for name in LAUNCHERS)
        self.distribution_groups = self.framework_parameters.get(
            "sagemaker_distribution_instance_groups", [self.group] if enabled else []
        )
        if groups:
            self.distribution_hosts = [
                host
                for group in groups
                if group["instance_group_name"] in self.distribution_groups
                for host in group["hosts"]
            ]
        else:
            self.distribution_hosts = list(self.hosts)
        self.master = (self.distribution_hosts or self.hosts)[0]

    @property
    def distributed(self) -> bool:
        """Whether this host is one of those that a launcher runs on (contract: H11)."""
        return self.group in self.distribution_groups

    def python_path(self) -> str:
        """The script's PYTHONPATH: its code, what this interpreter has, and our extras (contract: D20)."""
        own = [path for path in sys.path if path not in (self.code_dir, "")]
        extra = [path for path in self._extra_path if path and path not in own]
        return ":".join([self.code_dir, *own, *extra])

    def arguments(self) -> list[str]:
        return _mapping.to_arguments(self.hyperparameters)

    def properties(self) -> dict[str, Any]:
        """SM_TRAINING_ENV (contract: D18)."""
        parallel = os.environ.get("SM_HP_MP_PARAMETERS")
        return {
            "additional_framework_parameters": self.framework_parameters,
            "channel_input_dirs": self._channels(),
            "current_host": self.current_host,
            "current_instance_group": self.group,
            "current_instance_group_hosts": self._group_hosts(),
            "current_instance_type": self.instance_type,
            "distribution_hosts": self.distribution_hosts,
            "distribution_instance_groups": self.distribution_groups,
            "framework_module": self.framework_module,
            "hosts": self.hosts,
            "hyperparameters": self.hyperparameters,
            "input_config_dir": os.path.join(self._base, "input", "config"),
            "input_data_config": self.channels_config,
            "input_dir": os.path.join(self._base, "input"),
            "instance_groups": self.group_names,
            "instance_groups_dict": self.groups,
            "is_hetero": len(self.group_names) > 1,
            "is_master": self.current_host == self.master,
            "is_modelparallel_enabled": parallel and parallel != "{}",
            "is_smddpmprun_installed": which("smddpmprun") is not None,
            "is_smddprun_installed": which("smddprun") is not None,
            "job_name": os.environ.get("TRAINING_JOB_NAME"),
            "log_level": self.log_level,
            "master_hostname": self.master,
            "model_dir": os.path.join(self._base, "model"),
            "module_dir": self.module_dir,
            "module_name": self.module_name,
            "network_interface_name": self.interface,
            "num_cpus": os.cpu_count() or 1,
            "num_gpus": self.num_gpus,
            "num_neurons": self.num_neurons,
            "output_data_dir": os.path.join(self.output_dir, "data"),
            "output_dir": self.output_dir,
            "output_intermediate_dir": self.intermediate_dir,
            "resource_config": self.resources,
            "topology": self.resources.get("topology", []),
            "user_entry_point": self.entry_point,
        }

    def variables(self) -> dict[str, str]:
        """Every SM_* variable, in the toolkit's order (contract: D17)."""
        properties = self.properties()
        names = (
            ("hosts", "hosts"),
            ("network_interface_name", "network_interface_name"),
            ("hps", "hyperparameters"),
            ("user_entry_point", "user_entry_point"),
            ("framework_params", "additional_framework_parameters"),
            ("resource_config", "resource_config"),
            ("input_data_config", "input_data_config"),
            ("output_data_dir", "output_data_dir"),
            ("channels", None),
            ("current_host", "current_host"),
            ("current_instance_type", "current_instance_type"),
            ("current_instance_group", "current_instance_group"),
            ("current_instance_group_hosts", "current_instance_group_hosts"),
            ("instance_groups", "instance_groups"),
            ("instance_groups_dict", "instance_groups_dict"),
            ("distribution_instance_groups", "distribution_instance_groups"),
            ("is_hetero", "is_hetero"),
            ("module_name", "module_name"),
            ("log_level", "log_level"),
            ("framework_module", "framework_module"),
            ("input_dir", "input_dir"),
            ("input_config_dir", "input_config_dir"),
            ("output_dir", "output_dir"),
            ("num_cpus", "num_cpus"),
            ("num_gpus", "num_gpus"),
            ("num_neurons", "num_neurons"),
            ("model_dir", "model_dir"),
            ("module_dir", "module_dir"),
            ("training_env", None),
            ("user_args", None),
            ("output_intermediate_dir", "output_intermediate_dir"),
        )
        special: dict[str, Any] = {
            "channels": sorted(self.channels_config),
            "training_env": properties,
            "user_args": self.arguments(),
        }
        values = {name: special[name] if source is None else properties[source] for name, source in names}
        if properties["topology"]:  # contract: C15
            values["topology"] = properties["topology"]
        values.update({f"channel_{name}": path for name, path in self._channels().items()})
        values.update({f"hp_{key}": value for key, value in self.hyperparameters.items()})
        return _mapping.to_variables(values)

    def _channels(self) -> dict[str, str]:
        data = os.path.join(self._base, "input", "data")
        return {name: os.path.join(data, name) for name in self.channels_config}

    def _group_hosts(self) -> list[str]:
        return self.groups[self.group]["hosts"] if self.group in self.groups else []


def which(name: str) -> str | None:
    """Where PATH has the program `name`."""
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        path = os.path.join(directory, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _read(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _gpus(log: Log) -> int:
    """GPUs of this host: those that the engine shows it, or all of the machine's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA itself stops at the first index that it can't use.
        names = [name.strip() for name in visible.split(",")]
        usable = [name for name in names if name and name != "-1"]
        if not usable:
            log.info("No GPUs detected (normal if no gpus installed)")
        return len(usable)
    program = which("nvidia-smi")
    if program is not None:
        import subprocess

        listed = subprocess.run([program, "--list-gpus"], stdout=subprocess.PIPE)
        if listed.returncode == 0:
            return sum(line.startswith(b"GPU ") for line in listed.stdout.split(b"\n"))
    log.info("No GPUs detected (normal if no gpus installed)")
    return 0


def _neurons(instance_type: str, log: Log) -> int:
    """Neuron cores; on trn2.48xlarge the toolkit doesn't ask (contract: D17)."""
    if "trn2.48xlarge" in instance_type:
        return 64
    program = which("neuron-ls")
    if program is not None:
        import subprocess

        listed = subprocess.run([program, "-j"], stdout=subprocess.PIPE)
        if listed.returncode == 0:
            return sum(item.get("nc_count", 0) for item in json.loads(listed.stdout))
    log.info("No Neurons detected (normal if no neurons installed)")
    return 0
