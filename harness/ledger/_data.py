"""What goes in and what comes out: InputDataConfig, OutputDataConfig, CheckpointConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from harness.ledger._entry import Entry, Given, cloud_only, emulated, honoured, mapped, when
from harness.ledger._modes import AUGMENTED, FAST_FILE, PIPE

__all__ = ["ENTRIES"]


def _none(given: Given) -> bool:
    return given.value in (None, "None")


_BY_MEMBERS: Final = honoured("Honoured by its members.")
_NO_HUB: Final = cloud_only(
    "Only hubs and gated models of SageMaker need it; the data here is read without asking."
)
_KMS: Final = cloud_only(
    "Nothing is encrypted with KMS here; a host doesn't see in the cloud either whether it is."
)
_DATASET: Final = cloud_only(
    "A data set of the SageMaker hub, for managed fine-tuning, can't be read here.", impossible=True
)

_CHANNEL: Final = "InputDataConfig[]"
_SOURCE: Final = f"{_CHANNEL}.DataSource"

ENTRIES: Final[Mapping[str, Entry]] = {
    "InputDataConfig": _BY_MEMBERS,
    f"{_CHANNEL}.ChannelName": honoured("The channel is at /opt/ml/input/data/ under this name."),
    f"{_CHANNEL}.ContentType": honoured("Written to inputdataconfig.json."),
    f"{_CHANNEL}.CompressionType": honoured("Files arrive as they are stored.").but(
        when("Gzip", honoured("Every object is decompressed on its way into the FIFO."))
    ),
    f"{_CHANNEL}.RecordWrapperType": honoured("Written to inputdataconfig.json.").but(
        when(
            lambda given: not _none(given),
            honoured("Every object, or attribute, goes into the FIFO as one RecordIO record."),
        )
    ),
    f"{_CHANNEL}.InputMode": honoured("File: the files are complete on disk before the host starts.").but(
        when("FastFile", FAST_FILE),
        when("Pipe", PIPE),
    ),
    f"{_CHANNEL}.ShuffleConfig": _BY_MEMBERS,
    f"{_CHANNEL}.ShuffleConfig.Seed": emulated(
        "Shuffles the objects before hosts get their shares, in Pipe mode anew for each epoch; the order is not AWS's."
    ),
    _SOURCE: _BY_MEMBERS,
    f"{_SOURCE}.S3DataSource": _BY_MEMBERS,
    f"{_SOURCE}.S3DataSource.S3DataType": honoured(
        "S3Prefix: every object whose key begins with the prefix."
    ).but(
        when("ManifestFile", honoured("ManifestFile: the objects that the manifest lists.")),
        when("AugmentedManifestFile", AUGMENTED),
        when("Converse", _DATASET),
    ),
    f"{_SOURCE}.S3DataSource.S3Uri": mapped(
        "Looked for in the local object store, then in real S3 if there are credentials and not --offline."
    ).but(
        when(
            lambda given: given.uploaded,
            mapped("The local path that the spec gives is read in its place; only promotion uploads it."),
        )
    ),
    f"{_SOURCE}.S3DataSource.S3DataDistributionType": honoured("Every host gets all objects.").but(
        when(
            "ShardedByS3Key",
            emulated(
                "Objects are dealt out to the hosts by sorted key; AWS doesn't say how it deals them out."
            ),
        )
    ),
    f"{_SOURCE}.S3DataSource.AttributeNames": AUGMENTED,
    f"{_SOURCE}.S3DataSource.InstanceGroupNames": emulated(
        "Only hosts of these groups get the channel; AWS doesn't say what the others are told, here nothing."
    ),
    f"{_SOURCE}.S3DataSource.ModelAccessConfig": _NO_HUB,
    f"{_SOURCE}.S3DataSource.ModelAccessConfig.AcceptEula": _NO_HUB,
    f"{_SOURCE}.S3DataSource.HubAccessConfig": _NO_HUB,
    f"{_SOURCE}.S3DataSource.HubAccessConfig.HubContentArn": _NO_HUB,
    f"{_SOURCE}.FileSystemDataSource": _BY_MEMBERS,
    f"{_SOURCE}.FileSystemDataSource.FileSystemId": mapped(
        "The directory that [local.file_systems] gives for this id stands in for the file system."
    ),
    f"{_SOURCE}.FileSystemDataSource.FileSystemAccessMode": honoured(
        "Mounted read-only or writable, as it says."
    ),
    f"{_SOURCE}.FileSystemDataSource.FileSystemType": mapped(
        "A directory of this machine stands in, whatever the type; its speed and its locks are this machine's."
    ),
    f"{_SOURCE}.FileSystemDataSource.DirectoryPath": mapped(
        "Taken below the directory of [local.file_systems]."
    ),
    f"{_SOURCE}.DatasetSource": _DATASET,
    f"{_SOURCE}.DatasetSource.DatasetArn": _DATASET,
    "OutputDataConfig": _BY_MEMBERS,
    "OutputDataConfig.KmsKeyId": _KMS,
    "OutputDataConfig.S3OutputPath": mapped(
        "Artifacts go to this place in the local object store, under <job>/output/, and not to S3."
    ),
    "OutputDataConfig.CompressionType": honoured("GZIP: one model.tar.gz and one output.tar.gz.").but(
        when("NONE", honoured("NONE: plain files under output/model/ and output/data/."))
    ),
    "CheckpointConfig": _BY_MEMBERS,
    "CheckpointConfig.S3Uri": mapped(
        "Restored before the start and synced while it runs, with this place in the local object store, not S3."
    ),
    "CheckpointConfig.LocalPath": honoured("The checkpoint directory of every host is here."),
}
