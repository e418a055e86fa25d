"""The Downloading phase: what every host finds when it starts, made anew for each attempt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from harness import contract
from harness._values import dataclass
from harness.channels import StagedChannel, extract_source, open_remote, stage
from harness.engines import remove_tree
from harness.engines.images import standins_path
from harness.errors import ClientError, InternalServerError
from harness.lifecycle._capacity import MASTER_PORT, claim_port
from harness.lifecycle._strict import machine_seed, see_that_it_fits
from harness.model import Gpu, HostLaunch, JsonObject, Mount
from harness.objects import ObjectStore
from harness.store import HostRecord

if TYPE_CHECKING:
    from harness.lifecycle._supervisor import Supervisor

__all__ = ["Preparation", "Prepared", "piped"]

_ML: Final = PurePosixPath("/opt/ml")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The hosts of one attempt, as they lie on disk."""

    trees: Mapping[str, Path]
    """Host → what it sees at /opt/ml."""
    checkpoints: Mapping[str, Path]
    """Host → what it sees at CheckpointConfig.LocalPath; empty without CheckpointConfig."""
    gpus: Mapping[str, tuple[Gpu, ...]]
    logs: Path
    launches: tuple[HostLaunch, ...] = ()
    records: tuple[HostRecord, ...] = ()


def piped(request: JsonObject) -> bool:
    """Whether the job has a channel in Pipe mode (contract: E1)."""
    mode = request["AlgorithmSpecification"].get("TrainingInputMode")
    return any((one.get("InputMode") or mode) == "Pipe" for one in request.get("InputDataConfig") or ())


class Preparation:
    """Makes the hosts' directories; `again` finds those that an earlier supervisor made."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._job = supervisor
        self._request = supervisor.request
        self._hosts = tuple(host.name for host in supervisor.plan.hosts)
        self._root = supervisor.directory / "hosts"

    def again(self) -> Prepared:
        """The directories as they are."""
        trees = {host: self._tree(host) for host in self._hosts}
        if not all(tree.is_dir() for tree in trees.values()):
            raise InternalServerError(f"the hosts' directories in {self._root} are gone")
        return self._prepared(dict.fromkeys(self._hosts, ()))

    def fresh(self, gpus: tuple[Gpu, ...]) -> Prepared:
        """Everything anew: channels staged, code extracted, checkpoints restored (contract: B9, E31, F12)."""
        job = self._job
        shares = self._share(gpus)
        remove_tree(self._root)
        job._to("Downloading", contract.messages.DOWNLOADING)
        objects = ObjectStore(job.home.s3)
        channels = stage(
            self._request,
            job.spec.uploads,
            objects=objects,
            cache=job.home.cache,
            job_dir=job.directory,
            hosts=self._hosts,
            local=job.spec.local,
            progress=job.progress,
            region=job.spec.region,
            groups={host.name: host.instance_group for host in job.plan.hosts},
        )
        for host in self._hosts:
            see_that_it_fits(job, channels[host])
            self._write_host(host, objects, channels[host])
        job.store.merge_result(
            job.name,
            channels={
                channel.name: {"files": channel.files, "bytes": channel.size, "reused": channel.reused}
                for channel in channels[self._hosts[0]]
            },
        )
        for channel in channels[self._hosts[0]]:
            for warning in channel.warnings:
                job.note(warning)
        prepared = self._prepared(shares)
        launches = tuple(self._launch(host, prepared, channels[host]) for host in self._hosts)
        epoch = int(time.time())
        records = tuple(
            HostRecord(
                name=host,
                stream=f"{job.name}/{host}-{epoch}",  # contract: I2
                gpus=tuple(gpu.index for gpu in shares[host]),
            )
            for host in self._hosts
        )
        from harness.lifecycle._artifacts import Artifacts

        Artifacts(job, prepared).checkpoints.restore()
        if piped(self._request):
            from harness.channels import Feeder

            job.feeder = Feeder(
                job.name,
                channels,
                trees=prepared.trees,
                objects=objects,
                uploads=job.spec.uploads,
                local=job.spec.local,
                region=job.spec.region,
            )
        return Prepared(
            trees=prepared.trees,
            checkpoints=prepared.checkpoints,
            gpus=prepared.gpus,
            logs=prepared.logs,
            launches=launches,
            records=records,
        )

    # ----------------------------------------------------------------------- parts

    def _tree(self, host: str) -> Path:
        return self._root / host / "ml"

    def _scratch(self, host: str) -> Path:
        return self._root / host / "scratch"

    def _prepared(self, shares: Mapping[str, tuple[Gpu, ...]]) -> Prepared:
        local_path = contract.checkpoint_path(self._request)
        checkpoints = (
            {}
            if local_path is None
            else {host: self._checkpoint_dir(host, local_path) for host in self._hosts}
        )
        return Prepared(
            trees={host: self._tree(host) for host in self._hosts},
            checkpoints=checkpoints,
            gpus=shares,
            logs=self._job.logs,
        )

    def _checkpoint_dir(self, host: str, local_path: PurePosixPath) -> Path:
        if local_path.is_relative_to(_ML):
            return self._tree(host) / local_path.relative_to(_ML)
        return self._root / host / "checkpoints"

    def _share(self, gpus: tuple[Gpu, ...]) -> dict[str, tuple[Gpu, ...]]:
        """Each host's own GPUs: a GPU is never two hosts'."""
        shares: dict[str, tuple[Gpu, ...]] = {}
        taken = 0
        for host in self._job.plan.hosts:
            shares[host.name] = gpus[taken : taken + host.gpus]
            taken += host.gpus
        return shares

    @property
    def _isolated(self) -> bool:
        return bool(self._request.get("EnableNetworkIsolation", False))

    def _port(self) -> int:
        """MASTER_PORT of a sandbox, whose hosts share this machine's ports with all other jobs."""
        port = claim_port(self._job.store, self._job.name)
        if port != MASTER_PORT:
            self._job.note(f"MASTER_PORT is {port}: {MASTER_PORT} is in use on this machine")
        return port

    def _view(self, host: str) -> contract.HostView:
        return contract.host_view(
            self._request,
            host,
            seed=self._job.name,
            interface=self._job.plan.network_interface,
        )

    def _told(self, host: str) -> JsonObject:
        """The request as this host is told of it: with `[local] ranks` its launcher is told the number.

        A hyperparameter is the one way that both toolkits have (contract: H13, H18).
        """
        plan = next((each for each in self._job.plan.hosts if each.name == host), None)
        if plan is None or plan.processes is None:
            return self._request
        given = {**self._request.get("HyperParameters", {}), contract.PROCESSES: str(plan.processes)}
        return {**self._request, "HyperParameters": given}

    def _write_host(self, host: str, objects: ObjectStore, channels: Sequence[StagedChannel]) -> None:
        tree = self._tree(host)
        tree.mkdir(parents=True)
        self._scratch(host).mkdir()
        uri = contract.submit_directory(self._request)
        # Without a network the archive comes in a channel, by its local path, and the toolkit unpacks it.
        if uri is not None and uri.startswith("s3://"):
            self._extract(uri, objects, tree / "code")
        contract.write_tree(
            tree,
            request=self._told(host),
            job_name=self._job.name,
            host=self._view(host),
            channels=[
                contract.ChannelView(
                    name=channel.name,
                    mode=channel.mode,
                    content_type=channel.content_type,
                    record_wrapper=channel.record_wrapper,
                    distribution=channel.distribution,
                    manifest=channel.manifest,
                )
                for channel in channels
            ],
            clutter="clutter" in self._job.spec.local.strict_contract,
        )

    def _extract(self, uri: str, objects: ObjectStore, dest: Path) -> None:
        """The script's source: out of the local object store, where `submit` put it, or real S3."""
        remote = None
        if not objects.exists(uri):
            found = open_remote(self._job.spec.local, self._job.spec.region)
            if isinstance(found, str):
                raise ClientError(
                    f"Data download failed: there is no {uri} in the local object store; {found}"
                )
            remote = found
        for warning in extract_source(uri, objects, dest, remote=remote).warnings:
            self._job.note(warning)

    def _launch(self, host: str, prepared: Prepared, channels: Sequence[StagedChannel]) -> HostLaunch:
        job = self._job
        plan = job.plan
        sandbox = plan.engine == "sandbox"
        gpus = prepared.gpus[host]
        hostname = contract.ec2_hostname(machine_seed(job), host, job.spec.region)
        environment = contract.platform_environment(
            self._request, job_arn=job.spec.job_arn, region=job.spec.region, hostname=hostname, gpus=len(gpus)
        )
        if sandbox:
            python = plan.python or "python3"
            image_entrypoint: tuple[str, ...] | None = contract.toolkit_command(python)
            # There is no image, so its ENV is given here, below what the platform sets (contract: D13).
            own = contract.image_environment() | {"HARNESS_EXTRA_PATH": str(standins_path())}
            if "shell_arguments" in job.spec.local.strict_contract:
                own["HARNESS_TOOLKIT_SHELL"] = "1"  # contract: D29, D31
            if not self._isolated:
                own["HARNESS_MASTER_PORT"] = str(self._port())
            environment = own | environment
        else:
            image_entrypoint = None
        entrypoint, command = contract.command(self._request, image_entrypoint)
        mounts = [channel.mount for channel in channels if channel.mount is not None]
        local_path = contract.checkpoint_path(self._request)
        if local_path is not None and not local_path.is_relative_to(_ML):
            source = prepared.checkpoints[host]
            source.mkdir(parents=True, exist_ok=True)
            mounts.append(Mount(source=source, target=local_path, mode="rw"))
        prepend: Mapping[str, str] = {}
        if job.spec.local.debug is not None:
            from harness.lifecycle._debug import debug_parts

            parts = debug_parts(
                job.spec.local.debug,
                self._request,
                directory=self._root / host / "debug",
                host_rank=self._hosts.index(host),
            )
            mounts += parts.mounts
            environment |= parts.environment
            prepend = parts.prepend
        return HostLaunch(
            job_name=job.name,
            host=host,
            hosts=self._hosts,
            hostname=hostname,
            image=plan.image,
            entrypoint=entrypoint,
            command=command,
            environment=environment,
            ml=prepared.trees[host],
            mounts=tuple(mounts),
            scratch=self._scratch(host),
            gpus=gpus,
            shm_bytes=plan.shm_bytes,
            memory_bytes=plan.memory_bytes,
            network_isolated=self._isolated,
            network_interface=plan.network_interface,
            python=plan.python,
            prepend=prepend,
            evidence=job.directory / f"evidence-{host}.json" if job.spec.local.evidence else None,
        )
