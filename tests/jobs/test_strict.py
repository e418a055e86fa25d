"""The contract's defaults that expose common bugs: `[local.strict]` and --strict-contract (its appendix 2)."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import ClientError, SpecError
from harness.home import Home
from harness.lifecycle import _strict
from harness.model import ALWAYS_STRICT, STRICT
from harness.spec import load
from harness.store import StopRequest
from tests.jobs.conftest import Submit

ROOT = Path(__file__).parents[2]
WriteSpec = Callable[..., Path]
LOSS = [{"Name": "loss", "Regex": "loss=([0-9.]+)"}, {"Name": "tab", "Regex": r"loss=[0-9.]+\tacc=([0-9.]+)"}]
EVERYTHING = dict.fromkeys(STRICT, True)


def test_the_fourteen_have_names_and_are_documented() -> None:
    assert len(STRICT) + len(ALWAYS_STRICT) == 14
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/strict.md").read_text(), re.MULTILINE)
    assert documented == [*ALWAYS_STRICT, *STRICT]


@pytest.mark.parametrize(
    ("table", "option", "on"),
    [
        ({}, False, ()),
        ({}, True, tuple(STRICT)),
        ({"strict": {"clutter": True, "volume": True}}, False, ("clutter", "volume")),
        ({"strict": {"late_hosts": False}}, True, tuple(name for name in STRICT if name != "late_hosts")),
        ({"strict": {"empty_model": True}}, False, ()),
        ({"strict": True}, True, tuple(STRICT)),
    ],
)
def test_what_is_on(write_spec: WriteSpec, table: dict[str, Any], option: bool, on: tuple[str, ...]) -> None:
    spec = load(write_spec("", engine="sandbox", local=table), local={"strict_contract": option or None})

    assert spec.local.strict_contract == on
    assert spec.local.strict is (table.get("strict") is True)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"cluter": True}, r"\[local.strict\].*clutter"),
        ({"clutter": "yes"}, r"\[local.strict\] clutter must be true or false, not 'yes'"),
        (
            {"stop_signals": False},
            r"\[local.strict\] stop_signals can't be switched off: SIGTERM to process 1 only",
        ),
    ],
)
def test_what_is_refused(write_spec: WriteSpec, table: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load(write_spec("", engine="sandbox", local={"strict": table}))


def test_a_job_that_survives_it_all(run: Submit) -> None:
    # contract: C29, D29, I4
    job = run(
        r"""
        import os, sys
        config = "/opt/ml/input/config/"
        assert {"init-config.json", "trainingjobconfig.json"} <= set(os.listdir(config))
        print(sys.argv[1:])
        print("loss=0.5;\tacc=0.25")
        print("loss=0.5\tacc=0.75")
        """,
        engine="sandbox",
        hyperparameters={"blanks": "two  words"},
        metric_definitions=LOSS,
        local={"strict": EVERYTHING},
    )

    assert job.record.status == "Completed", job.log()
    assert b"['--blanks', 'two', 'words']" in job.log()
    told = job.record.result["strict"]
    assert told["survived"]
    assert {
        "clutter",
        "shell_arguments",
        "escaped_logs",
        "volume",
        "string_hyperparameters",
        "empty_model",
    } <= set(told["met"])
    assert told["not_met"]["late_hosts"] == "one host"
    (note,) = [note for note in job.record.result["notes"] if note.startswith("strict contract")]
    assert "tab has other values when the log's control characters are escaped" in note


def test_a_name_on_two_hosts_fails_the_job(run: Submit) -> None:
    # contract: F4
    job = run(
        """
        import os
        open("/opt/ml/model/weights", "w").write(os.environ["SM_CURRENT_HOST"])
        """,
        engine="sandbox",
        instance_count=2,
        local={"strict": {"clashes": True}},
    )

    assert job.record.status == "Failed"
    assert "model/weights differs between hosts" in (job.record.failure_reason or "")
    assert job.record.result["strict"]["survived"] is False


def test_data_larger_than_the_volume(run: Submit, tmp_path: Path) -> None:
    # contract: E32
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/sparse").open("wb") as file:
        file.truncate((1 << 30) + 1)
    job = run(
        "",
        engine="sandbox",
        volume_size=1,
        inputs={"training": str(tmp_path / "data")},
        local={"strict": {"volume": True}},
    )

    assert (job.record.failure_reason or "").startswith(
        "ClientError: Data download failed:Insufficient disk space"
    )


def strictly(*names: str, **fields: Any) -> Any:
    """A supervisor, as far as these functions want to know one."""
    notes: list[str] = []
    values = {
        "name": "j",
        "hostname_seed": "j",
        "spec": SimpleNamespace(local=SimpleNamespace(strict_contract=names)),
        "note": notes.append,
        "notes": notes,
        **fields,
    }
    return SimpleNamespace(**values)


def test_outputs_larger_than_the_volume(tmp_path: Path) -> None:
    # contract: F22
    (tmp_path / "model").mkdir()
    with (tmp_path / "model/sparse").open("wb") as file:
        file.truncate(600 << 20)
    job = strictly(
        "volume",
        request={"ResourceConfig": {"InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}},
        store=SimpleNamespace(job=lambda name: SimpleNamespace(result={"channels": {}}, name=name)),
    )

    with pytest.raises(ClientError, match="Artifact upload failed:Insufficient disk space"):
        _strict.see_that_outputs_fit(job, {"algo-1": tmp_path})
    job.request["ResourceConfig"]["VolumeSizeInGB"] = 2
    _strict.see_that_outputs_fit(job, {"algo-1": tmp_path})
    job.request["ResourceConfig"] = {"InstanceType": "ml.p4d.24xlarge", "VolumeSizeInGB": 1}
    _strict.see_that_outputs_fit(job, {"algo-1": tmp_path})


def test_names_are_others_after_a_restart() -> None:
    # contract: C16
    def seed(attempt: int, *names: str) -> str:
        store = SimpleNamespace(summary=lambda name: SimpleNamespace(attempt=attempt, name=name))
        return _strict.machine_seed(strictly(*names, store=store))

    assert seed(1, "remapped_hosts") == seed(2) == "j"
    assert seed(2, "remapped_hosts") != seed(3, "remapped_hosts")


def test_hosts_start_one_after_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract: H4
    monkeypatch.setattr(_strict, "_LATE", (0.2, 0.4))
    asked = threading.Event()

    class Requests:
        """The store, as far as a stop request is concerned."""

        def __init__(self, home: Home) -> None:
            del home

        def __enter__(self) -> Requests:
            return self

        def __exit__(self, *_: object) -> None: ...

        def summary(self, name: str) -> Any:
            return SimpleNamespace(
                name=name, stop_request=StopRequest.STOP if asked.is_set() else StopRequest.NONE
            )

    monkeypatch.setattr(_strict, "Store", Requests)
    launches = [SimpleNamespace(host=f"algo-{number}") for number in range(1, 4)]
    job = strictly("late_hosts", home=Home(home))

    def times() -> list[float]:
        began = time.monotonic()
        start = _strict.staggered(job, launches, lambda launch: launch)  # type: ignore[arg-type, return-value]
        found: list[float] = []
        threads = [
            threading.Thread(target=lambda each=each: (start(each), found.append(time.monotonic() - began)))  # type: ignore[misc]
            for each in launches
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(found)

    first, second, third = times()
    assert first < 0.15 < second
    assert third >= 0.2
    assert "strict contract: hosts start late" in job.notes[0]
    monkeypatch.setattr(_strict, "_LATE", (20, 30))
    asked.set()
    assert times()[2] < 10  # a stop request lets them all start at once
