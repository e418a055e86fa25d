"""Containers, networks and what is left of them, for the jobs of one state directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from harness.engines.docker import _launch
from harness.engines.docker._daemon import Daemon, connect, explain, status_of
from harness.engines.docker._host import Attachment, DockerHost, exit_status
from harness.engines.docker._ownership import Claim, give
from harness.engines.keeping import Keeping
from harness.errors import EngineError
from harness.home import Home
from harness.model import ExitStatus, HostLaunch

log = logging.getLogger(__name__)

PARALLEL: Final = 8
T = TypeVar("T")


class DockerEngine:
    """The hosts of jobs as containers of the daemon on this machine. Safe to use from several threads.

    Raises (the constructor):
        EngineError: no daemon that can be used answers.
    """

    def __init__(self) -> None:
        self._daemon: Daemon = connect()
        # Two state directories (two users, a test run) may have jobs of one name on one daemon.
        root = os.path.realpath(Home.find().root)
        self._scope = hashlib.sha256(root.encode()).hexdigest()[:12]
        self._lock = threading.Lock()
        self._networks: dict[str, str] = {}
        self._labels: dict[str, dict[str, str]] = {}
        self._hosts: dict[str, list[DockerHost]] = {}

    @property
    def name(self) -> str:
        return "docker"

    def prepare(self, launches: tuple[HostLaunch, ...]) -> None:
        job = launches[0].job_name
        # A tenth of a second: file systems stamp with a clock that lags behind.
        labels = _launch.labels(launches, scope=self._scope, since=time.time() - 0.1)
        network = self._create_network(
            f"harness-{job}", labels, internal=any(item.network_isolated for item in launches)
        )
        with self._lock:
            self._networks[job] = network
            self._labels[job] = labels

    def start(self, launch: HostLaunch) -> DockerHost:
        if launch.image is None:
            raise EngineError(f"the docker engine needs an image for {launch.host}, and the plan names none")
        _launch.make_directories(launch)
        network, since = self._network(launch.job_name)
        try:
            host = self._start(launch, network, since, overlays=True)
        except EngineError as error:
            if not (_has_overlay(launch) and re.search(r"mount(ing)? .*(volume|overlay)", str(error))):
                raise
            log.warning(
                "channels of %s are read-only: this system can't overlay them (%s)", launch.host, error
            )
            host = self._start(launch, network, since, overlays=False)
        with self._lock:
            self._hosts.setdefault(launch.job_name, []).append(host)
        return host

    def attach(self, job_name: str) -> Mapping[str, DockerHost]:
        from docker.errors import NotFound

        hosts: dict[str, DockerHost] = {}
        with self._daemon.doing(f"find the hosts of {job_name}"):
            for found in self._containers(job_name):
                if _launch.HOST not in found["Labels"]:
                    continue
                try:
                    state = self._daemon.client.inspect_container(found["Id"])["State"]
                except NotFound:
                    continue
                ended = None if state["Running"] or state.get("Paused") else exit_status(state)
                if state["Status"] == "created" and not state["ExitCode"]:
                    continue  # its supervisor died before it started it
                labels = found["Labels"]
                hosts[labels[_launch.HOST]] = DockerHost(
                    self._daemon,
                    name=labels[_launch.HOST],
                    container=found["Id"],
                    scratch=Path(labels[_launch.SCRATCH]),
                    ended=ended,
                )
        with self._lock:
            self._hosts.setdefault(job_name, []).extend(hosts.values())
        return hosts

    def close(self, job_name: str) -> None:
        self._daemon.returns()  # a daemon that is being restarted is worth waiting for
        with self._daemon.doing(f"remove what is left of {job_name}"):
            containers = self._containers(job_name)
            networks = self._daemon.client.networks(filters=self._filters(job_name))
            labels = [item["Labels"] for item in (*containers, *networks)]
            with self._lock:
                labels += [self._labels[job_name]] if job_name in self._labels else []
                hosts = self._hosts.pop(job_name, [])
            for host in hosts:
                host.release()
            for item in containers:
                self._keep_evidence(item)
            _each(self._remove_container, [item["Id"] for item in containers])
            volumes = self._daemon.client.volumes(filters=self._filters(job_name))["Volumes"] or ()
            _each(self._remove_volume, [item["Name"] for item in volumes])
        # The labels go last: until the files are the user's, the next close must still find them.
        if labels:
            give(self._daemon, _claim(labels))
        with self._daemon.doing(f"remove the network of {job_name}"):
            _each(self._remove_network, [item["Id"] for item in networks])
        with self._lock:
            self._networks.pop(job_name, None)
            self._labels.pop(job_name, None)

    # Hosts that are kept for several jobs

    def keeping(self, launch: HostLaunch) -> Keeping:
        """See `Keepable.keeping`."""
        with self._daemon.doing(f"look at the image {launch.image}"):
            found = self._daemon.client.inspect_image(launch.image)
        config = found.get("Config") or {}
        own = config.get("Entrypoint") or () if launch.entrypoint is None else launch.entrypoint
        # The image's own code would be in a volume, which can't be made anew under a running host.
        code = launch.ml / "code"
        baked = not code.is_dir() or not any(code.iterdir())
        return Keeping(
            refusal="its code is in the image, or unpacked only in the host" if baked else None,
            facts={"image": found["Id"], "Docker daemon": self._daemon.address},
            command=(*own, *launch.command),
            python="python3",
        )

    def settle(self, job_name: str) -> None:
        """See `Keepable.settle`."""
        with self._lock:
            labels = self._labels.get(job_name)
        if labels is not None:
            give(self._daemon, _claim([labels]))

    # Network

    def _network(self, job: str) -> tuple[str, float]:
        """The job's network and since when there is one."""
        with self._lock:
            if job in self._networks:
                return self._networks[job], float(self._labels[job][_launch.SINCE])
        with self._daemon.doing(f"find the network of {job}"):
            for network in self._daemon.client.networks(filters=self._filters(job)):
                return str(network["Id"]), float(network["Labels"][_launch.SINCE])
        raise EngineError(f"{job} has no network: prepare() comes before start()")

    def _create_network(self, name: str, labels: dict[str, str], *, internal: bool) -> str:
        from docker.errors import APIError

        # `internal` alone leaves this machine itself in reach, by the bridge's address: it gets none.
        hidden = {"com.docker.network.bridge.inhibit_ipv4": "true"} if not self._daemon.podman else None

        def create(name: str) -> str:
            made = self._daemon.client.create_network(
                name,
                driver="bridge",
                labels=labels,
                internal=internal,
                options=hidden if internal else None,
                check_duplicate=True,
            )
            return str(made["Id"])

        with self._daemon.doing(f"create the network of {labels[_launch.JOB]}"):
            try:
                return create(name)
            except APIError as error:
                if status_of(error) != 409:
                    raise
            for network in self._daemon.client.networks(filters=self._filters(labels[_launch.JOB])):
                # An earlier attempt's, whose labels name the same directories only if nothing changed.
                self._remove_network(network["Id"])
                return create(name)
            return create(f"{name}-{self._scope}")

    def _remove_network(self, network: str) -> None:
        from docker.errors import APIError, NotFound

        client = self._daemon.client
        try:
            client.remove_network(network)
        except NotFound:
            return
        except APIError as error:
            if status_of(error) != 403:  # someone else's container is on it: a debugging shell, say
                raise
            for container in client.inspect_network(network)["Containers"]:
                client.disconnect_container_from_network(container, network, force=True)
            client.remove_network(network)

    def _remove_volume(self, volume: str) -> None:
        from docker.errors import NotFound

        with contextlib.suppress(NotFound):
            self._daemon.client.remove_volume(volume, force=True)

    # Containers

    def _start(self, launch: HostLaunch, network: str, since: float, *, overlays: bool) -> DockerHost:
        from docker.errors import APIError

        client = self._daemon.client
        body = _launch.container(
            client,
            launch,
            network=network,
            scope=self._scope,
            since=since,
            overlays=overlays,
            podman=self._daemon.podman,
        )
        container = self._create_container(launch, body)
        attachment = None
        try:
            attachment = Attachment(self._daemon, container)
            ended = None
            with self._daemon.doing(f"start {launch.host}"):
                try:
                    client.start(container)
                except APIError as error:
                    ended = self._never_ran(container, error)
                    if ended is None:
                        raise
        except BaseException:
            if attachment is not None:
                attachment.close()
            self._remove_container(container)
            raise
        if ended is not None:
            attachment.close()
            attachment = None
        return DockerHost(
            self._daemon,
            name=launch.host,
            container=container,
            scratch=launch.scratch,
            attachment=attachment,
            ended=ended,
        )

    def _create_container(self, launch: HostLaunch, body: dict[str, Any]) -> str:
        from docker.errors import APIError, ImageNotFound

        client = self._daemon.client
        name = f"harness-{launch.job_name}-{launch.host}"
        with self._daemon.doing(f"create the container of {launch.host}"):
            try:
                return str(client.create_container_from_config(body, name)["Id"])
            except ImageNotFound as error:
                raise EngineError(
                    f"the image {launch.image} isn't on this machine: build it with `harness image build`, fetch "
                    f"it with `docker pull {launch.image}`, or map it to a local one in [local.images]"
                ) from error
            except APIError as error:
                if status_of(error) != 409:
                    raise
            for found in self._containers(launch.job_name):
                if found["Labels"].get(_launch.HOST) == launch.host:
                    if found["State"] == "running":
                        raise EngineError(f"{launch.host} of {launch.job_name} runs already: attach to it")
                    self._remove_container(found["Id"])
                    return str(client.create_container_from_config(body, name)["Id"])
            return str(client.create_container_from_config(body, f"{name}-{self._scope}")["Id"])

    def _never_ran(self, container: str, error: Any) -> ExitStatus | None:
        """The status of a container whose command can't be executed (contract: A2, A3), if it's that."""
        state = self._daemon.client.inspect_container(container)["State"]
        text = explain(error)
        code = int(state["ExitCode"])
        if code not in (126, 127) and re.search(r"\bexec(:|_| )", text):  # Podman keeps no code
            code = 126 if "permission denied" in text else 127
        return ExitStatus(code=code, error=text) if code in (126, 127) else None

    def _keep_evidence(self, container: Mapping[str, Any]) -> None:
        """See `HostLaunch.evidence`: when it ran, and paths with 0 for modified, 1 for added, 2 for deleted."""
        path = container["Labels"].get(_launch.EVIDENCE)
        if path is None or not Path(path).parent.is_dir():
            return
        state = self._daemon.client.inspect_container(container["Id"])["State"]
        changes = self._daemon.client.diff(container["Id"]) or []
        found = {
            "started": state["StartedAt"],
            "finished": state["FinishedAt"],
            "changes": {item["Path"]: item["Kind"] for item in changes},
        }
        Path(path).write_text(json.dumps(found), encoding="utf-8")

    def _remove_container(self, container: str) -> None:
        from docker.errors import APIError

        try:
            self._daemon.client.remove_container(container, force=True, v=True)
        except APIError as error:
            if status_of(error) == 404:
                return
            if status_of(error) != 409:  # 409: someone else removes it at this moment
                raise
            self._daemon.client.wait(container, condition="removed")

    def _containers(self, job: str) -> list[Any]:
        return list(self._daemon.client.containers(all=True, filters=self._filters(job)))

    def _filters(self, job: str) -> dict[str, list[str]]:
        return {"label": [f"{_launch.JOB}={job}", f"{_launch.SCOPE}={self._scope}"]}


def _has_overlay(launch: HostLaunch) -> bool:
    return any(mount.mode == "overlay" for mount in launch.mounts)


def _claim(labels: Iterable[Mapping[str, str]]) -> Claim:
    """All directories that any of these labels name."""
    labels = list(labels)

    def paths(key: str) -> tuple[Path, ...]:
        return tuple(sorted({Path(path) for label in labels for path in json.loads(label.get(key, "[]"))}))

    return Claim(
        own=paths(_launch.OWN),
        shared=paths(_launch.SHARED),
        since=min((float(label[_launch.SINCE]) for label in labels if _launch.SINCE in label), default=0.0),
        images=tuple({label[_launch.IMAGE]: None for label in labels if label.get(_launch.IMAGE)}),
        labels={key: labels[0][key] for key in (_launch.JOB, _launch.SCOPE)},
    )


def _each(action: Callable[[T], None], items: list[T]) -> None:
    """The action on all items, side by side; the first error is raised when all were tried."""
    if len(items) < 2:
        for item in items:
            action(item)
        return
    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        futures = [pool.submit(action, item) for item in items]
    for future in futures:
        future.result()
