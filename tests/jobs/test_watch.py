"""`harness watch` as a user has it: a process that is told of changes by nothing but the file system."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import queue
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.home import Home
from harness.lifecycle import end_idle
from harness.store import Store

COMMAND = (sys.executable, "-m", "harness", "watch")
QUICK = "print('mark 0', flush=True)\n"
LONG = "import time\nprint('mark 0', flush=True)\ntime.sleep(100)\n"
LATER = 0.8
"""Seconds in which a run that must not be would have started."""

WriteSpec = Callable[..., Path]


class Watch:
    """A watch that runs, seen through `--json`."""

    def __init__(self, spec: Path, *words: str, home: Path) -> None:
        self.home = Home(home)
        self.spec = spec
        self.code = spec.parent / "code"
        self.process = subprocess.Popen(
            [*COMMAND, str(spec), "--json", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: list[dict[str, Any]] = []
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def until(self, event: str, *, seconds: float = 60, **members: Any) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = self._events.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event} {members}; seen: {self.seen[-20:]}") from None
            if found is None:
                assert self.process.stderr is not None
                raise AssertionError(f"watch ended: {self.process.stderr.read()}; seen: {self.seen[-20:]}")
            self.seen.append(found)
            if found["event"] == event and all(found[name] == value for name, value in members.items()):
                return found

    def quiet(self, event: str, seconds: float = LATER) -> None:
        """Nothing of that kind happens for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                found = self._events.get(timeout=left)
                assert found is None or found["event"] != event, found

    def train(self, text: str) -> None:
        (self.code / "train.py").write_text(text)

    def mark(self, number: int) -> None:
        """Save a script that prints its number."""
        self.train(QUICK.replace("0", str(number)))

    def until_mark(self, number: int) -> dict[str, Any]:
        self.until("line", message=f"mark {number}")
        return self.until("ended")

    def leave(self, number: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


@pytest.fixture
def watch(home: Path, write_spec: WriteSpec) -> Iterator[Callable[..., Watch]]:
    running: list[Watch] = []

    def start(
        script: str,
        *words: str,
        engine: str = "sandbox",
        spec: Path | None = None,
        warm: bool = False,
        **options: Any,
    ) -> Watch:
        file = spec or write_spec(script, engine=engine, **options)
        running.append(Watch(file, *words, *(() if warm else ("--no-warm",)), home=home))
        return running[-1]

    yield start
    for each in running:
        each.leave()
    place = Home(home)
    deadline = time.monotonic() + 30
    while place.warm.is_dir() and any(place.warm.iterdir()):
        assert time.monotonic() < deadline
        end_idle(place, "the test is over")
        time.sleep(0.05)


# ------------------------------------------------------------------- reruns


def test_a_saved_line_runs(watch: Callable[..., Watch], engine_name: str) -> None:
    it = watch(QUICK, engine=engine_name)
    assert it.until_mark(0)["status"] == "Completed"
    it.mark(1)
    change = it.until("change")
    assert [Path(file["path"]).name for file in change["files"]] == ["train.py"]
    assert change["files"][0]["lines"] == ["-print('mark 0', flush=True)", "+print('mark 1', flush=True)"]
    ended = it.until_mark(1)
    assert ended["status"] == "Completed"
    assert 0 < ended["first_line_seconds"] < 30
    assert it.leave() == 130


def test_the_spec_is_watched_too(watch: Callable[..., Watch]) -> None:
    it = watch("import sys; print(sys.argv[1:], flush=True)", hyperparameters={"lr": 1})
    it.until("ended")
    it.spec.write_text(it.spec.read_text().replace('"lr" = 1', '"lr" = 2'))
    it.until("line", message="['--lr', '2']")
    assert it.until("ended")["status"] == "Completed"


def test_a_touch_and_what_is_ignored_do_not_run(watch: Callable[..., Watch]) -> None:
    it = watch(QUICK, files={".gitignore": "*.log\n"})
    it.until("ended")
    (it.code / "train.py").touch()
    (it.code / "a.log").write_text("x")
    (it.code / ".train.py.swp").write_text("x")
    it.quiet("change")
    it.mark(1)
    it.until_mark(1)


def test_a_checkout_of_many_files_is_one_run(watch: Callable[..., Watch], write_spec: WriteSpec) -> None:
    spec = write_spec(QUICK, engine="sandbox")
    git = ["git", "-C", str(spec.parent / "code"), "-c", "user.name=n", "-c", "user.email=e"]

    def do(*words: str) -> None:
        subprocess.run([*git, *words], check=True)

    do("init", "-q", "-b", "few")
    do("add", ".")
    do("commit", "-qm", "few")
    do("checkout", "-qb", "many")
    for number in range(300):
        (spec.parent / "code" / f"f{number}.py").write_text("1\n")
    it = watch("", spec=spec)
    it.until("ended")
    do("add", ".")
    do("commit", "-qm", "many")
    it.quiet("change")
    do("checkout", "-q", "few")
    assert len(it.until("change")["files"]) == 300
    assert it.until("ended")["run"] == 2
    it.quiet("change")


def test_a_script_that_edits_its_own_source_makes_no_loop(watch: Callable[..., Watch]) -> None:
    """It runs on a copy."""
    it = watch("open(__file__, 'a').write('# me\\n'); open('new.py', 'w').write('1'); print('mark 0')")
    it.until_mark(0)
    it.quiet("change")


def test_hosts_stay_warm_also_for_the_one_that_follows_a_stopped_run(
    watch: Callable[..., Watch], engine_name: str
) -> None:
    it = watch(QUICK, engine=engine_name, warm=True)
    warm = it.until_mark(0)["warm"]
    assert (warm["reused"], warm["kept"]) == (False, True), warm
    it.mark(1)
    assert it.until_mark(1)["warm"]["reused"]
    it.train(LONG.replace("0'", "2'"))
    it.until("line", message="mark 2")
    it.mark(3)
    assert it.until("ended")["superseded"]
    assert it.until_mark(3)["warm"]["reused"]


@pytest.mark.parametrize("said", ["spec", "--set"])
def test_a_spec_that_says_cold_stays_cold(watch: Callable[..., Watch], said: str) -> None:
    words = ("--set", "local.warm=false") if said == "--set" else ()
    table = {"warm": False} if said == "spec" else {}
    it = watch(QUICK, *words, warm=True, local=table)
    assert it.until_mark(0)["warm"] is None


# ------------------------------------------------------------- while it runs


def test_restart_stops_the_run_and_starts_the_next(watch: Callable[..., Watch]) -> None:
    it = watch(LONG)
    it.until("line", message="mark 0")
    saved = time.monotonic()
    it.mark(1)
    first = it.until("ended")
    assert (first["status"], first["superseded"]) == ("Stopped", True)
    assert it.until_mark(1)["status"] == "Completed"
    assert time.monotonic() - saved < 15


def test_a_script_that_will_not_stop_is_killed_soon(watch: Callable[..., Watch]) -> None:
    it = watch(f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{LONG}")
    it.until("line", message="mark 0")
    saved = time.monotonic()
    it.mark(1)
    assert it.until("ended")["superseded"]
    assert it.until_mark(1)["status"] == "Completed"
    assert time.monotonic() - saved < 15


def test_wait_lets_it_finish_and_runs_the_latest_once(watch: Callable[..., Watch]) -> None:
    it = watch("import time\nprint('mark 0', flush=True)\ntime.sleep(2)\n", "--on-change", "wait")
    it.until("line", message="mark 0")
    it.mark(1)
    time.sleep(0.6)
    it.mark(2)
    first = it.until("ended")
    assert (first["status"], first["superseded"]) == ("Completed", False)
    ended = it.until_mark(2)
    assert ended["run"] == 2
    it.quiet("started")


def test_a_storm_of_saves_ends_with_the_last_one(watch: Callable[..., Watch]) -> None:
    it = watch(LONG)
    it.until("line", message="mark 0")
    for number in range(1, 21):
        it.mark(number)
        time.sleep(0.02)
    while it.until("ended")["superseded"]:
        pass
    assert any(event.get("message") == "mark 20" for event in it.seen)
    it.quiet("started")


# -------------------------------------------------------------- bad weather


def test_what_cant_run_is_told_and_the_next_change_runs(watch: Callable[..., Watch]) -> None:
    it = watch(QUICK)
    it.until("ended")
    text = it.spec.read_text()
    it.spec.write_text(f"{text}\n===")
    refused = it.until("refused")["error"]
    assert refused["type"] == "SpecError"
    assert "not valid TOML" in refused["message"]
    it.mark(1)  # the spec is still broken: the same sentence again
    it.until("refused")
    it.spec.write_text(text)
    it.until_mark(1)


def test_a_spec_that_is_broken_from_the_start(watch: Callable[..., Watch], write_spec: WriteSpec) -> None:
    spec = write_spec(QUICK, engine="sandbox")
    (spec.parent / "code").rename(spec.parent / "elsewhere")
    it = watch("", spec=spec)
    assert "does not exist" in it.until("refused")["error"]["message"]
    (spec.parent / "elsewhere").rename(spec.parent / "code")
    it.until_mark(0)


def test_source_and_spec_that_go_and_come_back(watch: Callable[..., Watch]) -> None:
    it = watch(QUICK)
    it.until("ended")
    shutil.rmtree(it.code)
    it.until("refused")
    it.code.mkdir()
    it.mark(1)
    it.until_mark(1)
    it.spec.rename(it.spec.with_suffix(".away"))
    it.until("refused")
    it.spec.with_suffix(".away").rename(it.spec)
    it.until_mark(1)


def test_a_failing_run_goes_on(watch: Callable[..., Watch]) -> None:
    it = watch("raise SystemExit(3)")
    ended = it.until("ended")
    assert ended["status"] == "Failed"
    assert "ExitCode 3" in ended["failure_reason"]
    it.mark(1)
    assert it.until_mark(1)["status"] == "Completed"


def test_a_file_that_changes_while_it_is_packed_runs_again(watch: Callable[..., Watch]) -> None:
    """Whichever version the first of them packed, the last one runs."""
    it = watch(QUICK, files={"big.bin": "x" * 20_000_000})
    it.until("ended")
    (it.code / "other.py").write_text("1")
    it.until("change")
    it.mark(7)
    it.until("change")
    it.until_mark(7)


def test_a_name_that_is_taken(watch: Callable[..., Watch], unique: str) -> None:
    it = watch(QUICK, "--job-name", unique)
    assert it.until("ended")["job"] == unique
    it.mark(1)
    assert re.fullmatch(rf"{unique}-[\d-]+", it.until_mark(1)["job"])


def test_two_watches_of_one_spec(watch: Callable[..., Watch]) -> None:
    one = watch(QUICK)
    one.until("ended")
    two = watch("", spec=one.spec)
    two.until("ended")
    one.mark(1)
    jobs = {each.until_mark(1)["job"] for each in (one, two)}
    assert len(jobs) == 2


# ------------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_leaving_stops_the_running_job(
    watch: Callable[..., Watch], number: signal.Signals, code: int
) -> None:
    it = watch(LONG)
    it.until("line", message="mark 0")
    (watcher,) = [
        child
        for child in psutil.Process(it.process.pid).children()
        if "_watch_process" in str(child.cmdline())
    ]
    it.process.send_signal(number)
    ended = it.until("ended")
    assert (ended["status"], ended["superseded"]) == ("Stopped", False)
    assert it.process.wait(30) == code
    assert not watcher.is_running()


def test_a_watch_that_is_killed_leaves_no_process_of_its_own(watch: Callable[..., Watch]) -> None:
    it = watch(QUICK)
    it.until("ended")
    children = psutil.Process(it.process.pid).children(recursive=True)
    it.leave(signal.SIGKILL)
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]


def test_the_reader_of_a_pipe_goes_away(home: Path, write_spec: WriteSpec) -> None:
    spec = write_spec("import time\nwhile True: print('mark 0'), time.sleep(0.1)", engine="sandbox")
    command = f"{' '.join(COMMAND)} {spec} --no-warm | grep -m1 'mark 0'"
    found = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60
    )
    assert (found.returncode, found.stderr) == (141, b""), found
    with Store(Home(home)) as store:
        deadline = time.monotonic() + 20
        while store.unfinished():
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_an_output_that_takes_nothing_ends_it(
    home: Path, write_spec: WriteSpec, words: tuple[str, ...]
) -> None:
    spec = write_spec(LONG, engine="sandbox")
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [*COMMAND, str(spec), "--no-warm", *words], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (found.returncode, b"can't be written" in found.stderr) == (3, True), found
    with Store(Home(home)) as store:
        deadline = time.monotonic() + 20
        while store.unfinished():
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.usefixtures("home")
def test_a_spec_that_never_was_is_not_waited_for(tmp_path: Path) -> None:
    found = subprocess.run([*COMMAND, str(tmp_path / "jobb.toml")], capture_output=True, timeout=60)
    assert found.returncode == 2
    assert b"jobb.toml can't be read: No such file or directory" in found.stderr


def test_old_runs_are_removed_but_failed_ones_stay(watch: Callable[..., Watch]) -> None:
    it = watch("raise SystemExit(1)", warm=True)
    failed = it.until("ended")["job"]
    jobs = []
    for number in range(1, 13):
        it.mark(number)
        jobs.append(it.until_mark(number)["job"])
    it.mark(99)
    it.until_mark(99)
    it.leave()
    left = {path.name for path in it.home.jobs.iterdir()}
    assert failed in left
    assert not left & set(jobs[:2])
    assert set(jobs[4:]) < left
    with Store(it.home) as store:
        assert {record.name for record in store.jobs(limit=None)} == left


# ---------------------------------------------------------------- what one sees


@pytest.mark.usefixtures("home")
def test_plain_lines_without_a_terminal(write_spec: WriteSpec) -> None:
    spec = write_spec(QUICK, engine="sandbox")
    with subprocess.Popen([*COMMAND, str(spec), "--no-warm"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = b""
        for line in process.stdout:
            text += line
            if b"waiting for a change" in line:
                process.send_signal(signal.SIGINT)
                break
    assert process.returncode == 130
    assert b"\x1b" not in text
    assert b"algo-1 \xe2\x94\x82 mark 0" in text
    assert b"run 1: Completed" in text


class Terminal:
    """A terminal of that size with a watch in it."""

    def __init__(self, spec: Path, rows: int, columns: int) -> None:
        self.leader, follower = pty.openpty()
        self.before = termios.tcgetattr(follower)
        self.resize(rows, columns)
        self.process = subprocess.Popen(
            [*COMMAND, str(spec), "--no-warm"],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self.follower = follower
        self.text = ""

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, *texts: str, seconds: float = 60) -> None:
        """Until all of these were shown since the last call."""
        deadline = time.monotonic() + seconds
        self.text = ""
        while not all(text in self.text for text in texts):
            assert time.monotonic() < deadline, (texts, self.text[-4000:])
            if select.select([self.leader], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self.leader, 1 << 16).decode("utf-8", "replace")

    def end(self) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            deadline = time.monotonic() + 20
            while self.process.poll() is None and time.monotonic() < deadline:
                if select.select([self.leader], [], [], 0.1)[0]:
                    self.text += os.read(self.leader, 1 << 16).decode("utf-8", "replace")
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        self.end()
        os.close(self.leader)
        os.close(self.follower)


@pytest.fixture
def terminal(home: Path, write_spec: WriteSpec) -> Iterator[Callable[..., Terminal]]:
    del home
    made: list[Terminal] = []

    def start(script: str, rows: int = 30, columns: int = 100, **options: Any) -> Terminal:
        spec = write_spec(script, engine="sandbox", **options)
        made.append(Terminal(spec, rows, columns))
        made[-1].spec = spec  # type: ignore[attr-defined]
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGINT)
        each.close()


def test_one_screen_that_is_given_back(terminal: Callable[..., Terminal]) -> None:
    it = terminal(QUICK)
    it.until("✓ run 1 Completed", "mark 0")
    os.write(it.leader, b"r")
    it.until("✓ run 2 Completed", "run again")
    os.write(it.leader, b"q")
    assert it.end() == 130
    assert it.text.rindex("\x1b[?1049l") < it.text.rindex("Completed")  # the last words are on the usual page
    assert "\x1b[?25h" in it.text
    assert termios.tcgetattr(it.follower) == it.before


def test_ctrl_c_on_the_screen_stops_the_job(terminal: Callable[..., Terminal]) -> None:
    it = terminal(LONG)
    it.until("mark 0")
    os.write(it.leader, b"\x03")
    assert it.end() == 130
    assert "Stopped" in it.text[it.text.rindex("\x1b[?1049l") :]
    assert termios.tcgetattr(it.follower) == it.before


def test_a_terminal_that_changes_its_size(terminal: Callable[..., Terminal]) -> None:
    it = terminal(
        QUICK + "print('界' * 500)\nprint('x' * 300_000)\nprint('\\033[2Jclean')\n", rows=8, columns=30
    )
    it.until("run 1 Completed")
    for rows, columns in ((2, 10), (50, 200), (1, 1), (24, 80)):
        it.resize(rows, columns)
        time.sleep(0.3)
    it.until("✓ run 1 Completed")
    assert "\x1b[2Jclean" not in it.text


def test_a_hundred_thousand_lines_do_not_freeze_it(terminal: Callable[..., Terminal]) -> None:
    it = terminal("import time\nfor n in range(1_000_000): print(n)\ntime.sleep(60)\n", rows=20, columns=80)
    it.until("Training")
    began = time.monotonic()
    os.write(it.leader, b"\x03")
    assert it.end() == 130
    assert time.monotonic() - began < 15
