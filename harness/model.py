"""Frozen value objects that the rooms hand to one another. No I/O here.

`request` is always the plain JSON object of AWS's CreateTrainingJob shape, with AWS's member names: a
class of our own for each of its 146 nodes would only be a second place to be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from harness._values import dataclass, field

JsonObject = dict[str, Any]

ENGINES = ("auto", "docker", "sandbox")
EngineName = Literal["auto", "docker", "sandbox", "fake"]


STRICT: Mapping[str, str] = {
    "remapped_hosts": "after a restart the hosts' machines have other names",
    "clutter": "input/config has the platform's undocumented files too",
    "late_hosts": "hosts start 5 to 30 s after one another, so that peers resolve late",
    "clashes": "equal names on several hosts fail the job",
    "escaped_logs": "metric definitions are held against the log with its control characters escaped too",
    "shell_arguments": "arguments go through a shell, as in AWS's toolkits up to 5.1.1",
    "volume": "VolumeSizeInGB is all the disk there is",
}
"""Of the contract's fourteen defaults that expose common bugs (its appendix 2) those that can be switched on."""
ALWAYS_STRICT: Mapping[str, str] = {
    "shuffled_groups": "hosts of instance groups are shuffled",
    "string_hyperparameters": "all hyperparameters are strings of at most 2,500 characters",
    "bare_environment": "no AWS_DEFAULT_REGION, no SM_* from the platform, no terminal, a host name that isn't algo-N",
    "real_channels": "FastFile is read-only, Pipe is FIFOs",
    "stop_signals": "SIGTERM to process 1 only, SIGKILL after the grace",
    "empty_model": "no model.tar.gz of an empty directory, and Completed all the same",
    "output_data_only": "output.tar.gz has what is in output/data only",
}
"""The others: here, as in the cloud, they can't be switched off."""


class Treatment(str, Enum):
    """What happens here to a field of the request."""

    HONOURED = "honoured"
    """Does here what it does in the cloud."""
    EMULATED = "emulated"
    """Its effect on the script is reproduced by other means."""
    MAPPED = "mapped"
    """Something of this machine stands in for it; the plan says what."""
    CLOUD_ONLY = "cloud-only"
    """Has no effect here; the reason says why, and whether the script could notice."""
    UNCLASSIFIED = "unclassified"
    """Newer than this harness: the installed botocore has it and the ledger doesn't."""


@dataclass(frozen=True, kw_only=True)
class DebugOptions:
    """How the user's processes are to be debugged: what `harness debug` asks for."""

    mode: Literal["debugpy", "pdb", "post-mortem"]
    """post-mortem: only what is uncaught stops, in a terminal debugger."""
    rank: int | None = 0
    """The one process of the job that is debugged, by its global rank; None: whichever stops first."""
    wait: bool = False
    """debugpy: the script's first line waits for a client."""
    attach_timeout: float = 600.0
    """Seconds that a process waits for its debugger before the job ends with a clear sentence."""


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """The `[local]` table: how this machine stands in for the cloud. Never part of the request."""

    engine: EngineName = "auto"
    gpus: str | int = "all"
    """"all", a number, or a comma-separated list of indices ("0,2")."""
    ranks: Literal["cloud", "local"] = "local"
    """Processes that a launcher starts on each host: as many as there, or one for each GPU that it has here."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Cloud image pattern (fnmatch) → local image."""
    file_systems: Mapping[str, str] = field(default_factory=dict)
    """FileSystemId → local directory."""
    python: str | None = None
    """Interpreter of the sandbox engine; default: the one that runs the harness."""
    shm_size: str | None = None
    """"/dev/shm" size: bytes, or with k/m/g ("64m" is the strict reading of contract B14)."""
    memory: str | None = None
    """Memory limit of each host, same form; default none."""
    stop_grace: float = 120.0
    """Seconds between SIGTERM and SIGKILL (contract: G9)."""
    checkpoint_interval: float = 30.0
    """Seconds between two checkpoint syncs (contract: F15)."""
    offline: bool = False
    """Never talk to real S3."""
    s3_latency_ms: float = 0.0
    """Milliseconds that each object of a channel takes to its first byte, as S3 would."""
    s3_throughput_mbps: float = 0.0
    """Megabits per second (10⁶ bit/s) that all channels of one host get together; 0: as fast as this machine."""
    strict: bool = False
    strict_contract: tuple[str, ...] = ()
    """Names of `STRICT` that are on: `[local.strict]`, or all of them by --strict-contract."""
    warm: bool = False
    """Keep the hosts prepared for the next matching job, with the script's heavy modules imported."""
    warm_idle: float = 900.0
    """Seconds after which a warm host that nobody used goes away."""
    warm_memory: str | None = None
    """Memory that must stay available on this machine, as of `shm_size`: with less, warm hosts that nobody uses
    go away. Default: a tenth."""
    preload: tuple[str, ...] | None = None
    """Modules that a warm host imports beforehand; None: those that the script imports."""
    hang_after: float = 300.0
    """Seconds of silence after which a job is looked at: does it hang? 0: never."""
    debug: DebugOptions | None = None
    """Set by `harness debug`, never in a file."""
    evidence: bool = False
    """Set by `harness verify`, never in a file: what hosts leave is kept also of a job that completes, with a list
    of what each container changed in its image."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A local path that must be in the object store under `uri` before the job starts.

    `source`: source_dir (a directory, or a ready tar.gz), stored as a sourcedir.tar.gz at `uri`.
    `channel`: a file or directory; locally it is mounted where it lies, on promotion it is uploaded.
    """

    path: Path
    uri: str
    kind: Literal["source", "channel"]
    channel: str | None = None
    entry_point: str | None = None
    """With kind "source" and no source_dir: the one script that is the whole archive."""
    dependencies: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A spec, read and compiled: the request, and what it takes to run it."""

    request: JsonObject
    local: LocalOptions = field(default_factory=LocalOptions)
    uploads: tuple[Upload, ...] = ()
    region: str = "us-east-1"
    account: str = "111122223333"
    origin: str = "python"
    """The file it came from, for messages."""
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Dotted request path → "job.toml", "default", "--option", for `plan`."""
    source: Path | None = None
    """Where the code came from on this machine, if no upload says it: that of a rerun is in the store already."""
    rerun_of: str | None = None
    """The job that this one runs again."""

    @property
    def job_name(self) -> str:
        return str(self.request["TrainingJobName"])

    @property
    def job_arn(self) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.account}:training-job/{self.job_name}"


@dataclass(frozen=True, kw_only=True)
class FieldTreatment:
    """One line of the ledger for one request: a field that was given, and what happens to it."""

    path: str
    """Dotted, as in `ResourceConfig.InstanceType`; list items as `InputDataConfig[].ChannelName`."""
    value: Any
    treatment: Treatment
    reason: str
    visible: bool = False
    """Cloud-only and the script could see the difference: what `--strict` refuses."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of this machine."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """One host of the job, as the cloud would have it and as it is here."""

    name: str
    instance_type: str
    instance_group: str
    cloud_gpus: int
    gpus: int
    """How many of this machine's GPUs it gets; which ones is decided when the job is started."""
    processes: int | None = None
    """What its launcher is told to start, with `[local] ranks = "cloud"`; None: it finds out by itself."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How this machine runs one request, and why so."""

    engine: EngineName
    engine_reason: str
    image: str | None
    """The local image that runs; None in the sandbox."""
    image_asked: str | None
    image_note: str
    """How `image` differs from what was asked; empty when it is the same."""
    hosts: tuple[HostPlan, ...]
    network_interface: str
    shm_bytes: int
    memory_bytes: int | None
    cpus: int
    disk_free_bytes: int
    python: str | None
    """Interpreter of the sandbox; None in docker."""
    world_size: int
    """Ranks that really start here under the request's launcher; hosts when it has none."""
    cloud_world_size: int
    treatments: tuple[FieldTreatment, ...]
    notes: tuple[str, ...] = ()
    """What the user should know, one sentence each, most important first."""

    @property
    def gpus(self) -> int:
        """GPUs that the whole job needs of this machine."""
        return sum(host.gpus for host in self.hosts)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A directory or file of this machine, seen by a host at `target`."""

    source: Path
    target: PurePosixPath
    mode: Literal["ro", "rw", "overlay"]
    """overlay: the host may write; what it writes goes to `scratch`, never to `source`."""
    scratch: Path | None = None


@dataclass(frozen=True, kw_only=True)
class HostLaunch:
    """Everything an engine needs to start one host."""

    job_name: str
    host: str
    hosts: tuple[str, ...]
    """All hosts of the job, in the order of resourceconfig.json."""
    hostname: str
    """What gethostname() says: EC2-like, never `algo-N` (contract: A20)."""
    image: str | None
    entrypoint: tuple[str, ...] | None
    """None: the image's own (docker); the sandbox always has one."""
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ml: Path
    """Bound read-write at /opt/ml."""
    mounts: tuple[Mount, ...]
    scratch: Path
    """A directory of this host's own, for /tmp and for what the engine keeps; never shown as it is."""
    gpus: tuple[Gpu, ...]
    shm_bytes: int
    memory_bytes: int | None = None
    network_isolated: bool = False
    network_interface: str = "eth0"
    python: str | None = None
    prepend: Mapping[str, str] = field(default_factory=dict)
    """Lists of places such as PYTHONPATH: what goes before whatever else the host has in them."""
    evidence: Path | None = None
    """The file that gets, once the host has ended, when it ran and what it changed in its image; None: none."""


@dataclass(frozen=True, kw_only=True)
class ExitStatus:
    """How a host ended."""

    code: int
    """0–255; 128+n when signal n ended it, as a shell and Docker tell it."""
    oom_killed: bool = False
    error: str | None = None
    """The engine's words when the host never started (contract: A2, A3)."""
    vanished: bool = False
    """The host was gone without an exit status: removed, or the daemon or supervisor died."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a host uses, at one moment."""

    cpu_seconds: float
    """Cumulative, user and system, all processes of the host."""
    memory_bytes: int
    memory_limit_bytes: int
    pids: tuple[int, ...] = ()
    """Process ids on this machine, to attribute GPU use; empty when the engine can't tell."""


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """One value of a metric: from a metric definition, or sampled."""

    name: str
    value: float
    timestamp_ms: int
    host: str


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One item of SecondaryStatusTransitions; times in epoch seconds (contract: G4)."""

    status: str
    start: float
    end: float | None
    message: str
