"""What AWS does around the container: debugger, profiler, experiments, tags, checks, models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from harness.ledger._entry import Entry, Given, cloud_only, emulated, honoured, when

__all__ = ["ENTRIES"]


def _off(given: Given) -> bool:
    return not given.value


_BY_MEMBERS: Final = honoured("Honoured by its members.")
_TAGS: Final = cloud_only("Kept with the job; cost allocation and access rules by tag are AWS's.")
_HOOK: Final = emulated("Written to debughookconfig.json, for smdebug in the script to read.")
_NOT_UPLOADED: Final = "is not uploaded: it stays in the host's directory and goes with it"
_RULES: Final = cloud_only("Rules run beside the job in processing jobs of their own; none is started here.")
_PROFILER: Final = emulated("Written to profilerconfig.json, for smdebug in the script to read.")
_EXPERIMENT: Final = cloud_only(
    "Kept with the job; there is no experiment service here to record the trial in."
)
_SERVERLESS: Final = cloud_only(
    "A serverless job has no container of yours: it runs inside AWS, and only there.", impossible=True
)
_MLFLOW: Final = cloud_only(
    "SageMaker's MLflow is not reached from here: what it would tell the script is not there.", visible=True
)
_PACKAGE: Final = cloud_only(
    "No model package is registered here; model.tar.gz is in the local object store."
)
_DEBUG: Final = cloud_only(
    "No SSM agent is started in the host; it is on this machine, where you can look into it."
)
_CHECK: Final = cloud_only("This machine's health is not checked before the job.")
_SESSION: Final = cloud_only("There is no session with AWS whose tags could be passed on.")

ENTRIES: Final[Mapping[str, Entry]] = {
    "Tags": _TAGS,
    "Tags[].Key": _TAGS,
    "Tags[].Value": _TAGS,
    "DebugHookConfig": _HOOK,
    "DebugHookConfig.LocalPath": _HOOK,
    "DebugHookConfig.S3OutputPath": cloud_only(f"What the hook writes {_NOT_UPLOADED}."),
    "DebugHookConfig.HookParameters": _HOOK,
    "DebugHookConfig.CollectionConfigurations": _HOOK,
    "DebugHookConfig.CollectionConfigurations[].CollectionName": _HOOK,
    "DebugHookConfig.CollectionConfigurations[].CollectionParameters": _HOOK,
    "DebugRuleConfigurations": _RULES,
    "DebugRuleConfigurations[].RuleConfigurationName": _RULES,
    "DebugRuleConfigurations[].LocalPath": _RULES,
    "DebugRuleConfigurations[].S3OutputPath": _RULES,
    "DebugRuleConfigurations[].RuleEvaluatorImage": _RULES,
    "DebugRuleConfigurations[].InstanceType": _RULES,
    "DebugRuleConfigurations[].VolumeSizeInGB": _RULES,
    "DebugRuleConfigurations[].RuleParameters": _RULES,
    "TensorBoardOutputConfig": _BY_MEMBERS,
    "TensorBoardOutputConfig.LocalPath": emulated(
        "The directory is there, and named in tensorboardoutputconfig.json."
    ),
    "TensorBoardOutputConfig.S3OutputPath": cloud_only(f"What TensorBoard writes {_NOT_UPLOADED}."),
    "ExperimentConfig": _EXPERIMENT,
    "ExperimentConfig.ExperimentName": _EXPERIMENT,
    "ExperimentConfig.TrialName": _EXPERIMENT,
    "ExperimentConfig.TrialComponentDisplayName": _EXPERIMENT,
    "ExperimentConfig.RunName": _EXPERIMENT,
    "ProfilerConfig": _PROFILER,
    "ProfilerConfig.S3OutputPath": cloud_only(f"What the profiler writes {_NOT_UPLOADED}."),
    "ProfilerConfig.ProfilingIntervalInMilliseconds": _PROFILER,
    "ProfilerConfig.ProfilingParameters": _PROFILER,
    "ProfilerConfig.DisableProfiler": _PROFILER,
    "ProfilerRuleConfigurations": _RULES,
    "ProfilerRuleConfigurations[].RuleConfigurationName": _RULES,
    "ProfilerRuleConfigurations[].LocalPath": _RULES,
    "ProfilerRuleConfigurations[].S3OutputPath": _RULES,
    "ProfilerRuleConfigurations[].RuleEvaluatorImage": _RULES,
    "ProfilerRuleConfigurations[].InstanceType": _RULES,
    "ProfilerRuleConfigurations[].VolumeSizeInGB": _RULES,
    "ProfilerRuleConfigurations[].RuleParameters": _RULES,
    "RemoteDebugConfig": _BY_MEMBERS,
    "RemoteDebugConfig.EnableRemoteDebug": _DEBUG.but(when(_off, honoured("No remote access is asked for."))),
    "InfraCheckConfig": _BY_MEMBERS,
    "InfraCheckConfig.EnableInfraCheck": _CHECK.but(when(_off, honoured("No check is asked for."))),
    "SessionChainingConfig": _BY_MEMBERS,
    "SessionChainingConfig.EnableSessionTagChaining": _SESSION.but(
        when(_off, honoured("No chaining is asked for."))
    ),
    "ServerlessJobConfig": _SERVERLESS,
    "ServerlessJobConfig.BaseModelArn": _SERVERLESS,
    "ServerlessJobConfig.AcceptEula": _SERVERLESS,
    "ServerlessJobConfig.JobType": _SERVERLESS,
    "ServerlessJobConfig.CustomizationTechnique": _SERVERLESS,
    "ServerlessJobConfig.Peft": _SERVERLESS,
    "ServerlessJobConfig.EvaluationType": _SERVERLESS,
    "ServerlessJobConfig.EvaluatorArn": _SERVERLESS,
    "ServerlessJobConfig.SequenceLength": _SERVERLESS,
    "MlflowConfig": _MLFLOW,
    "MlflowConfig.MlflowResourceArn": _MLFLOW,
    "MlflowConfig.MlflowExperimentName": _MLFLOW,
    "MlflowConfig.MlflowRunName": _MLFLOW,
    "ModelPackageConfig": _PACKAGE,
    "ModelPackageConfig.ModelPackageGroupArn": _PACKAGE,
    "ModelPackageConfig.SourceModelPackageArn": cloud_only(
        "The source model package is not fetched: the script doesn't find that model here.", visible=True
    ),
}
