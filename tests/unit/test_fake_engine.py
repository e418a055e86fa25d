"""The fake engine keeps the promises that tests rely on."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path

import pytest

from harness.engines import open_engine
from harness.engines.fake import FakeEngine, Script, Stage, World
from harness.errors import EngineError
from harness.model import ExitStatus, HostLaunch, Usage


def launch(tmp_path: Path, host: str = "algo-1", job: str = "job") -> HostLaunch:
    return HostLaunch(
        job_name=job,
        host=host,
        hosts=(host,),
        hostname="ip-10-0-1-2.ec2.internal",
        image="image",
        entrypoint=None,
        command=("train",),
        environment={},
        ml=tmp_path / host / "ml",
        mounts=(),
        scratch=tmp_path / host / "scratch",
        gpus=(),
        shm_bytes=0,
    )


def started(world: World, *launches: HostLaunch) -> FakeEngine:
    engine = FakeEngine(world)
    engine.prepare(launches)
    for item in launches:
        engine.start(item)
    return engine


def test_a_host_without_a_script_ends_at_once_with_0(tmp_path: Path) -> None:
    host = started(World(), launch(tmp_path)).attach("job")["algo-1"]

    assert host.wait(5) == ExitStatus(code=0)
    assert list(host.output()) == []


def test_output_comes_as_it_is_said_and_ends_with_the_host(tmp_path: Path) -> None:
    world = World({"algo-1": Script(output=(b"a\xff", b"b" * 1000), delay=0.01, code=3)})

    host = started(world, launch(tmp_path)).attach("job")["algo-1"]

    assert b"".join(host.output()) == b"a\xff" + b"b" * 1000
    assert host.wait(5) == ExitStatus(code=3)
    assert b"".join(host.output(skip=2)) == b"b" * 1000


def test_a_script_may_act_on_the_launch(tmp_path: Path) -> None:
    def act(stage: Stage) -> int:
        model = stage.launch.ml / "model"
        model.mkdir(parents=True)
        (model / "weights").write_bytes(b"w")
        stage.say(b"saved\n")
        return 7

    host = started(World(lambda _: Script(act=act)), launch(tmp_path)).attach("job")["algo-1"]

    assert host.wait(5) == ExitStatus(code=7)
    assert (tmp_path / "algo-1/ml/model/weights").read_bytes() == b"w"


def test_a_mistake_in_a_script_is_told_in_the_output(tmp_path: Path) -> None:
    host = started(World({"algo-1": Script(act=lambda _: 1 // 0)}), launch(tmp_path)).attach("job")["algo-1"]

    assert host.wait(5) == ExitStatus(code=1)
    assert b"ZeroDivisionError" in b"".join(host.output())


@pytest.mark.parametrize(
    ("handlers", "code"),
    [({}, 137), ({signal.SIGTERM: 0}, 0), ({signal.SIGTERM: 143}, 143)],
    ids=["no handler", "saves", "dies"],
)
def test_sigterm_does_only_what_the_script_handles(
    tmp_path: Path, handlers: dict[int, int], code: int
) -> None:
    # contract: G10
    world = World({"algo-1": Script(hold=math.inf, on_signal=handlers)})
    host = started(world, launch(tmp_path)).attach("job")["algo-1"]

    host.signal(signal.SIGTERM)
    ended = host.wait(0.05)
    host.kill()

    assert (ended is None) == (not handlers)
    assert host.wait(5) == ExitStatus(code=code)
    assert world.methods("job") == ["prepare", "start", "attach", "signal", "kill"]


@pytest.mark.parametrize(
    "status",
    [
        ExitStatus(code=137, oom_killed=True),
        ExitStatus(code=137, vanished=True, error="the container was removed"),
    ],
)
def test_a_world_ends_hosts_from_outside(tmp_path: Path, status: ExitStatus) -> None:
    world = World(
        {"algo-1": Script(hold=math.inf, usage=Usage(cpu_seconds=1, memory_bytes=2, memory_limit_bytes=3))}
    )
    host = started(world, launch(tmp_path)).attach("job")["algo-1"]
    assert host.usage() == Usage(cpu_seconds=1, memory_bytes=2, memory_limit_bytes=3)

    world.end("job", "algo-1", status)

    assert host.wait(5) == status
    assert host.usage() is None


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (
            Script(code=127, error="exec: train: not found"),
            ExitStatus(code=127, error="exec: train: not found"),
        ),
        (Script(code=137, oom_killed=True), ExitStatus(code=137, oom_killed=True)),
        (
            Script(code=137, vanish=True),
            ExitStatus(code=137, vanished=True, error="it vanished, as its script says"),
        ),
    ],
)
def test_scripted_ends(tmp_path: Path, script: Script, status: ExitStatus) -> None:
    assert started(World({"algo-1": script}), launch(tmp_path)).attach("job")["algo-1"].wait(5) == status


def test_hosts_survive_their_engine_and_not_their_close(tmp_path: Path) -> None:
    world = World({"algo-1": Script(output=(b"one",), hold=math.inf)})
    first = started(world, launch(tmp_path)).attach("job")["algo-1"]

    survivor = FakeEngine(world).attach("job")["algo-1"]
    assert next(survivor.output(skip=1)) == b"ne"
    FakeEngine(world).close("job")
    FakeEngine(world).close("job")

    assert first.wait(5) == ExitStatus(code=137)
    assert FakeEngine(world).attach("job") == {}


def test_a_world_that_is_down_refuses_every_call(tmp_path: Path) -> None:
    world = World()
    world.down = "no Docker Engine"

    with pytest.raises(EngineError, match="no Docker Engine"):
        FakeEngine(world).prepare((launch(tmp_path),))


def test_a_script_may_refuse_to_start(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="isn't on this machine"):
        started(World({"algo-1": Script(refuse="the image isn't on this machine")}), launch(tmp_path))


def test_open_engine_gives_the_world_of_the_state_directory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    World.here().scripts = {"algo-1": Script(code=9)}
    engine = open_engine("fake")
    engine.prepare((launch(tmp_path),))

    assert engine.start(launch(tmp_path)).wait(5) == ExitStatus(code=9)
    assert "algo-1" in open_engine("fake").attach("job")
    monkeypatch.setenv("HARNESS_HOME", str(home / "other"))
    assert open_engine("fake").attach("job") == {}


def test_hosts_run_side_by_side(tmp_path: Path) -> None:
    barrier = threading.Barrier(3, timeout=5)
    world = World(lambda _: Script(act=lambda _: barrier.wait() * 0))

    engine = started(world, *(launch(tmp_path, f"algo-{n}") for n in (1, 2, 3)))

    assert [host.wait(5) for host in engine.attach("job").values()] == [ExitStatus(code=0)] * 3
