"""What runs and with which words: AlgorithmSpecification, HyperParameters, Environment, the job's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from harness.ledger._entry import Entry, Given, cloud_only, emulated, honoured, mapped, when
from harness.ledger._modes import FAST_FILE, PIPE

__all__ = ["ENTRIES", "HYPERPARAMETERS"]


def _sandbox(given: Given) -> bool:
    return given.sandbox


def _off(given: Given) -> bool:
    try:
        return not json.loads(given.value)
    except ValueError:
        return False


_NOT_PULLED: Final = cloud_only(
    "Images are not pulled by the job: the image that runs is one that is on this machine already."
)

ENTRIES: Final[Mapping[str, Entry]] = {
    "TrainingJobName": honoured(
        "The job has this name here, in TRAINING_JOB_NAME and in the ARN, and it can't be used again."
    ),
    "HyperParameters": honoured(
        "Written to hyperparameters.json as they are, every value a string; the toolkit makes arguments of them."
    ),
    "AlgorithmSpecification": honoured("Honoured by its members."),
    "AlgorithmSpecification.TrainingImage": mapped(
        "A local image stands in: the one of this name, or the one that [local.images] maps it to."
    ).but(
        when(
            _sandbox,
            mapped("This machine's Python and its packages stand in for the image, which is not used."),
        )
    ),
    "AlgorithmSpecification.AlgorithmName": cloud_only(
        "An algorithm of the AWS Marketplace or of the account is an image that only SageMaker can fetch.",
        impossible=True,
    ),
    "AlgorithmSpecification.TrainingInputMode": honoured(
        "File: every channel's files are complete on disk before the host starts."
    ).but(
        when("FastFile", FAST_FILE),
        when("Pipe", PIPE),
    ),
    "AlgorithmSpecification.MetricDefinitions": honoured("Applied to the log as its lines arrive."),
    "AlgorithmSpecification.MetricDefinitions[].Name": honoured("The metric has this name here."),
    "AlgorithmSpecification.MetricDefinitions[].Regex": honoured(
        "Searched in every line of the log, as Python's regular expressions, in bounded time."
    ),
    "AlgorithmSpecification.EnableSageMakerMetricsTimeSeries": emulated(
        "SAGEMAKER_METRICS_DIRECTORY and its directory are there; files written into it are not read."
    ),
    "AlgorithmSpecification.ContainerEntrypoint": honoured(
        "Starts the host in the image's entry point's place."
    ).but(when(_sandbox, honoured("Starts the host; its program must be one that this machine has."))),
    "AlgorithmSpecification.ContainerArguments": honoured("Follow the entry point in the place of `train`."),
    "AlgorithmSpecification.TrainingImageConfig": _NOT_PULLED,
    "AlgorithmSpecification.TrainingImageConfig.TrainingRepositoryAccessMode": _NOT_PULLED,
    "AlgorithmSpecification.TrainingImageConfig.TrainingRepositoryAuthConfig": _NOT_PULLED,
    "AlgorithmSpecification.TrainingImageConfig.TrainingRepositoryAuthConfig.TrainingRepositoryCredentialsProviderArn": _NOT_PULLED,
    "RoleArn": cloud_only(
        "Nothing assumes the role: a host has no AWS credentials here, except those that Environment gives it."
    ),
    "Environment": honoured("Every entry is in the environment of every host, as it is."),
}


def _launcher(name: str, needs: str, *, sandbox: Entry) -> Entry:
    """A launcher that the image's own toolkit starts, and in the sandbox ours."""
    return honoured(f"The image's own toolkit starts {name}; it needs {needs} in the image.").but(
        when(_off, honoured(f"{name} is switched off.")), when(_sandbox, sandbox)
    )


HYPERPARAMETERS: Final[Mapping[str, Entry]] = {  # contract: H10, H11
    "sagemaker_submit_directory": emulated(
        "The code is unpacked into /opt/ml/code before the host starts; the toolkit finds it there and downloads nothing."
    ),
    "sagemaker_s3_output": cloud_only(
        "Files written to /opt/ml/output/intermediate stay there: they are not copied out while the job runs."
    ),
    "sagemaker_mpi_enabled": _launcher(
        "mpirun",
        "sshd and Open MPI",
        sandbox=emulated(
            "The harness starts mpirun's ranks on all hosts; calls of MPI itself need mpirun and mpi4py here, and one host."
        ),
    ),
    "sagemaker_pytorch_ddp_enabled": _launcher(
        "smddprun for PyTorch DDP",
        "sshd and Open MPI",
        sandbox=emulated("The harness starts smddprun's ranks on all hosts, with its variables."),
    ),
    "sagemaker_torch_distributed_enabled": honoured(
        "torchrun starts the script, one process for each GPU that a host has here, or one without GPUs."
    ).but(when(_off, honoured("torchrun is switched off."))),
    "sagemaker_distributed_dataparallel_enabled": _launcher(
        "smddprun",
        "sshd and Open MPI",
        sandbox=emulated(
            "The harness starts smddprun's ranks on all hosts, over a stand-in for smdistributed.dataparallel."
        ),
    ),
    "sagemaker_pytorch_xla_multi_worker_enabled": _launcher(
        "PyTorch XLA",
        "torch_xla",
        sandbox=honoured(
            "PyTorch XLA starts the script, if this machine's Python has torch_xla and there are GPUs."
        ),
    ),
}
"""Hyperparameters with a meaning of their own: they have a line beside that of HyperParameters."""
