"""On what it runs, and how long: ResourceConfig, networks, limits, retries, spot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from harness.ledger._entry import Entry, Given, cloud_only, emulated, honoured, mapped, when

__all__ = ["ENTRIES"]


def _off(given: Given) -> bool:
    return not given.value


_BY_MEMBERS: Final = honoured("Honoured by its members.")
_INSTANCE: Final = mapped("This machine stands in; resourceconfig.json and the environment keep this name.")
_COUNT: Final = emulated("So many hosts run here, side by side on this one machine.")
_CAPACITY: Final = cloud_only(
    "There is no capacity to reserve: a job starts when this machine has room for it."
)
_ULTRA: Final = cloud_only(
    "There are no UltraServers here: resourceconfig.json has no topology.",  # contract: C15
    visible=True,
)
_READ_ONLY: Final = cloud_only("AWS sets it in its answers; a request can't.")
_VPC: Final = cloud_only(
    "There is no VPC here: what only its subnets reach is not reached from this machine."
)

_KEEP: Final = cloud_only(
    "There are no warm pools here: no SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY and no cache that lasts.",
    visible=True,  # contract: B22
)

ENTRIES: Final[Mapping[str, Entry]] = {
    "ResourceConfig": _BY_MEMBERS,
    "ResourceConfig.InstanceType": _INSTANCE,
    "ResourceConfig.InstanceCount": _COUNT,
    "ResourceConfig.VolumeSizeInGB": mapped(
        "The disk that $HARNESS_HOME is on stands in; only the data of File mode is held to the size."
    ),
    "ResourceConfig.VolumeKmsKeyId": cloud_only(
        "Volumes are not encrypted by the harness; a host can't tell."
    ),
    "ResourceConfig.KeepAlivePeriodInSeconds": _KEEP.but(when(_off, honoured("No warm pool is asked for."))),
    "ResourceConfig.InstanceGroups": _BY_MEMBERS,
    "ResourceConfig.InstanceGroups[].InstanceType": _INSTANCE,
    "ResourceConfig.InstanceGroups[].InstanceCount": _COUNT,
    "ResourceConfig.InstanceGroups[].InstanceGroupName": honoured(
        "Told in resourceconfig.json; each host knows its group."
    ),
    "ResourceConfig.TrainingPlanArn": _CAPACITY,
    "ResourceConfig.InstancePlacementConfig": _BY_MEMBERS,
    "ResourceConfig.InstancePlacementConfig.EnableMultipleJobs": _CAPACITY,
    "ResourceConfig.InstancePlacementConfig.PlacementSpecifications": _BY_MEMBERS,
    "ResourceConfig.InstancePlacementConfig.PlacementSpecifications[].UltraServerId": _ULTRA,
    "ResourceConfig.InstancePlacementConfig.PlacementSpecifications[].InstanceCount": _ULTRA,
    "ResourceConfig.InstancePreferences": emulated("The first preference is taken, as if AWS had it free."),
    "ResourceConfig.InstancePreferences[].InstanceType": _INSTANCE,
    "ResourceConfig.InstancePreferences[].InstanceCount": _COUNT,
    "ResourceConfig.InstancePreferences[].TrainingPlanArns": _CAPACITY,
    "ResourceConfig.SelectedInstanceType": _READ_ONLY,
    "ResourceConfig.SelectedInstanceCount": _READ_ONLY,
    "VpcConfig": _VPC,
    "VpcConfig.SecurityGroupIds": _VPC,
    "VpcConfig.Subnets": _VPC,
    "StoppingCondition": _BY_MEMBERS,
    "StoppingCondition.MaxRuntimeInSeconds": honoured(
        "The job is stopped then: SIGTERM, and SIGKILL after the grace."
    ),
    "StoppingCondition.MaxWaitTimeInSeconds": honoured(
        "Counts from the job's creation; the job is stopped then."
    ),
    "StoppingCondition.MaxPendingTimeInSeconds": cloud_only(
        "A job that waits for this machine's GPUs or host slots waits as long as it takes."
    ),
    "EnableNetworkIsolation": honoured("Hosts reach one another and nothing else.").but(
        when(_off, honoured("Hosts have this machine's network."))
    ),
    "EnableInterContainerTrafficEncryption": cloud_only(
        "Traffic between hosts doesn't leave this machine and is not encrypted; a host sees only the speed."
    ).but(when(_off, honoured("No encryption is asked for."))),
    "EnableManagedSpotTraining": cloud_only(
        "Nothing is interrupted here by itself; checkpoints are restored as after an interruption."
    ).but(when(_off, honoured("No spot instance is asked for."))),
    "RetryStrategy": _BY_MEMBERS,
    "RetryStrategy.MaximumRetryAttempts": honoured(
        "An InternalServerError, which is the harness's own fault here, starts another attempt."
    ),
}
