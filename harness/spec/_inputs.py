"""`[inputs]` → InputDataConfig: S3 URIs, file systems, and local paths that will be uploaded."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from harness._values import dataclass
from harness.model import JsonObject, Upload
from harness.spec._draft import Words
from harness.spec._names import join
from harness.spec._table import kind, spelled, unknown

_S3_WORDS: Mapping[str, str] = {
    "s3_data": "S3Uri",
    "s3_uri": "S3Uri",
    "uri": "S3Uri",
    "path": "S3Uri",
    "s3_data_type": "S3DataType",
    "distribution": "S3DataDistributionType",
    "attribute_names": "AttributeNames",
    "instance_groups": "InstanceGroupNames",
    "hub_access_config": "HubAccessConfig",
    "model_access_config": "ModelAccessConfig",
}
_CHANNEL_WORDS: Mapping[str, str] = {
    "content_type": "ContentType",
    "compression": "CompressionType",
    "record_wrapping": "RecordWrapperType",
    "input_mode": "InputMode",
    "shuffle_config": "ShuffleConfig",
}
_FILE_SYSTEM_WORDS: Mapping[str, str] = {
    "file_system_id": "FileSystemId",
    "file_system_type": "FileSystemType",
    "directory_path": "DirectoryPath",
    "file_system_access_mode": "FileSystemAccessMode",
}
_CHANNEL_MEMBERS = ("DataSource", *_CHANNEL_WORDS.values())


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The channels of a job and what must be uploaded for them."""

    channels: list[JsonObject]
    uploads: tuple[Upload, ...]


def find_inputs(words: Words, *, bucket: str, job_name: str) -> Inputs:
    """The channels that `inputs` and `model_uri` describe.

    Raises:
        SpecError: a channel is of no known form, or its local path can't be read.
    """
    given = words.get("inputs", {})
    if isinstance(given, str) or hasattr(given, "config"):
        given = {"training": given}
    if not isinstance(given, Mapping):
        raise words.error(f"inputs must be a table of channels or one S3 URI, not {kind(given)}")
    reader = _Reader(words, bucket, job_name)
    channels = [reader.channel(name, value) for name, value in given.items()]
    if "model_uri" in words:
        table = {
            "s3_data": words.get("model_uri"),
            "content_type": "application/x-sagemaker-model",
            "input_mode": "File",
        }
        channels.append(reader.channel(words.get("model_channel_name", "model"), table))
    return Inputs(channels=channels, uploads=tuple(reader.uploads))


def code_channel(uri: str) -> JsonObject:
    """The channel that brings sourcedir.tar.gz to an isolated container, as the SDK adds it."""
    return _s3_channel("code", {"S3Uri": uri}, {})


class _Reader:
    def __init__(self, words: Words, bucket: str, job_name: str) -> None:
        self.words = words
        self.bucket = bucket
        self.job_name = job_name
        self.uploads: list[Upload] = []

    def channel(self, name: str, value: Any) -> JsonObject:
        if hasattr(value, "config"):  # the SDK's TrainingInput and FileSystemInput
            return {**copy.deepcopy(value.config), "ChannelName": name}
        if isinstance(value, str):
            return _s3_channel(name, {"S3Uri": self.locate(name, value)}, {})
        if not isinstance(value, Mapping):
            raise self.words.error(
                f"channel {name} must be an S3 URI, a local path or a table, not {kind(value)}"
            )
        where = f"[inputs.{name}]"
        if any(key in value for key in ("DataSource", "data_source")):
            return {
                **spelled(self.words, value, where, _CHANNEL_MEMBERS, _CHANNEL_WORDS),
                "ChannelName": name,
            }
        of_file_system = any(key in value for key in _FILE_SYSTEM_WORDS)
        source_words = _FILE_SYSTEM_WORDS if of_file_system else _S3_WORDS
        known = {**source_words, **_CHANNEL_WORDS}
        for key in value:
            if key not in known:
                raise self.words.error(unknown(key, where, tuple(known), tuple(known)))
        source: dict[str, Any] = {}
        for key, each in value.items():
            if key in source_words:
                if source_words[key] in source:
                    raise self.words.error(f"{where} has its place twice: keep one of s3_data, uri and path")
                source[source_words[key]] = each
        options = {_CHANNEL_WORDS[key]: each for key, each in value.items() if key in _CHANNEL_WORDS}
        seed = options.get("ShuffleConfig")
        if isinstance(seed, int) and not isinstance(seed, bool):
            options["ShuffleConfig"] = {"Seed": seed}
        elif seed is not None:
            options["ShuffleConfig"] = spelled(self.words, seed, f"{where} shuffle_config", ("Seed",))
        if of_file_system:
            source.setdefault("FileSystemAccessMode", "ro")
            return {"ChannelName": name, "DataSource": {"FileSystemDataSource": source}, **options}
        if not isinstance(source.get("S3Uri"), str):
            raise self.words.error(
                f"{where} says not where the data is: give s3_data, path or file_system_id"
            )
        source["S3Uri"] = self.locate(name, source["S3Uri"])
        return _s3_channel(name, source, options)

    def locate(self, channel: str, text: str) -> str:
        """An S3 URI as it is; a local path as the URI that it is going to be uploaded to."""
        if "://" in text and not text.startswith("file://"):
            return text
        path = self.words.path(text.removeprefix("file://"))
        try:
            if path.is_dir():
                with os.scandir(path):
                    pass
            else:
                with path.open("rb"):
                    pass
        except OSError as error:
            raise self.words.error(
                f"channel {channel}: the data path {text} can't be read ({error.strerror}: {path})"
            ) from error
        # A directory's prefix ends with a slash, or channel `train` would also bring what `train2` has.
        tail = "" if path.is_dir() else path.name
        uri = f"s3://{self.bucket}/{join(self.job_name, 'input', channel)}/{tail}"
        self.uploads.append(Upload(path=path, uri=uri, kind="channel", channel=channel))
        return uri


def _s3_channel(name: str, source: Mapping[str, Any], options: Mapping[str, Any]) -> JsonObject:
    """As the SDK's TrainingInput writes it."""
    ordered = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated", **source}
    return {"ChannelName": name, "DataSource": {"S3DataSource": ordered}, **options}
