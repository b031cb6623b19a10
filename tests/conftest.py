"""Fixtures for all tests.

`program` runs a Python program as a child in a session of its own, with a hard time limit, and
holds it to INV nothing-left when the test is over: no process of that session, no name in /dev/shm.
A program that hangs is asked for its goroutines (SIGQUIT) before it is killed; the dump is in the
failure.

`segment` makes segments without processes, for tests that use mpgort._core directly.

Ports (tests/go): when the last process of a program has gone, the checker walks its segment
(`sound`). MPGORT_SHAKE=50 runs each of them under 50 seeds of the schedule shaker (shm/shake.c),
its numbers of workers and modes in turn (all of them with each seed: eight times as long)."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rest import comes_to_rest as comes_to_rest

# Of the tests that draw what they try: one for the run, printed at its end, so that what failed can
# be run again as it was. (Here: a second conftest would hide this one from tests that import it.)
os.environ.setdefault("MPGORT_SEED", str(random.randrange(1, 1 << 32)))

# A shell without job control has what it starts in the background ignore these, and so would the
# programs of the tests, which are sent them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

LIMIT_S = 60.0
GONE_S = 1.0  # within this much after M0's end, however it came, nothing is left


@dataclass
class Process:
    pid: int
    ppid: int
    state: str
    argv: str


@dataclass
class Result:
    status: int  # exit status, or minus the signal
    out: str
    err: str
    seconds: float


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        f"MPGORT_SEED={os.environ['MPGORT_SEED']} (of the tests that draw what they try)"
    )


def session(sid: int) -> list[Process]:
    """The processes of a session; zombies that only wait for init to look are not counted."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()
            argv = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if int(stat[3]) == sid and not (stat[0] == "Z" and stat[1] == "1"):
            found.append(Process(int(name), int(stat[1]), stat[0], argv.decode(errors="replace")))
    return found


def shm_names(since: float) -> dict[str, int]:
    """Names in /dev/shm that were made after this time.monotonic(), and whose maker is dead: nobody
    will unlink them. With the maker's pid."""
    found = {}
    for path in Path("/dev/shm").glob("mpgort-*"):
        maker = int(path.name.split("-")[2])
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        if age < time.monotonic() - since + 0.01 and not os.path.exists(f"/proc/{maker}"):
            found[path.name] = maker
    return found


def wait_until(what: str, true: Callable[[], object], limit: float = 10.0) -> None:
    """Waits for a condition that comes by itself; fails the test after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {limit} s")
        time.sleep(0.002)


@dataclass
class Running:
    """A started program. Its pid is its session's id."""

    popen: subprocess.Popen[str]
    started: float
    out: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def line(self) -> str:
        """The next line of stdout, waited for: programs say so when they have come somewhere."""
        assert self.popen.stdout is not None
        text = self.popen.stdout.readline()
        assert text, f"the program has ended with {self.wait().err}"
        self.out += text
        return text.rstrip("\n")

    def processes(self) -> list[Process]:
        """Of its session. The kernel gives no process a pid that is still the name of a session: if
        M0 was waited for and there is one with its pid, that session is somebody else's."""
        found = session(self.pid)
        if self.popen.returncode is not None and any(p.pid == self.pid for p in found):
            return []
        return found

    def keeper(self) -> Process | None:
        """M0's only child in these programs."""
        return next((p for p in self.processes() if p.ppid == self.pid and p.state != "Z"), None)

    def workers(self) -> list[Process]:
        keeper = self.keeper()
        known = {self.pid, keeper.pid if keeper else -1}
        return [p for p in self.processes() if p.pid not in known and p.state != "Z"]

    def kill_some(self, rng: random.Random, numbers: tuple[int, ...] = (1, 1, 1, 2, 4)) -> int:
        """SIGKILL to some workers at random, one of `numbers` at once; how many it found alive."""
        workers, killed = self.workers(), 0
        for victim in rng.sample(workers, min(len(workers), rng.choice(numbers))):
            try:
                os.kill(victim.pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
        return killed

    def wait(self, limit: float = LIMIT_S) -> Result:
        """Until M0 has ended and nobody holds its output any more."""
        try:
            out, err = self.popen.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGQUIT)
            try:
                out, err = self.popen.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                self.end()
                out, err = self.popen.communicate()
            pytest.fail(f"no end within {limit} s\nstdout: {self.out}{out}\nstderr: {err}")
        took = time.monotonic() - self.started
        return Result(self.popen.returncode, self.out + out, err, took)

    def end(self) -> None:
        for p in self.processes():
            try:
                os.kill(p.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


class Programs:
    """What the fixture `program` is: call it to run a program to its end, `start` to go on beside
    it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Running] = []
        self.killed = False  # SIGKILL may hit the microseconds in which the segment has a name

    def start(
        self,
        source: str | Path,
        *args: str,
        env: dict[str, str] | None = None,
        session: bool = False,
    ) -> Running:
        """session: the source is typed into `python -i`."""
        if isinstance(source, str):
            path = self.folder / f"prog{len(self.all)}.py"
            path.write_text(textwrap.dedent(source))
        else:
            path = source
        libs = [str(Path(__file__).parent / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": os.pathsep.join(libs),  # what programs have in common
        }
        popen = subprocess.Popen(
            [sys.executable, *(("-i", "-q") if session else (str(path), *args))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=path.open() if session else subprocess.DEVNULL,
            text=True,
            env=environ | (env or {}),
            start_new_session=True,
        )
        running = Running(popen, time.monotonic())
        self.all.append(running)
        return running

    def __call__(
        self,
        source: str | Path,
        *args: str,
        env: dict[str, str] | None = None,
        limit: float = LIMIT_S,
        session: bool = False,
    ) -> Result:
        return self.start(source, *args, env=env, session=session).wait(limit)

    def storm(
        self,
        source: str,
        seconds: float,
        *args: str,
        migrate: str,
        numbers: tuple[int, ...] = (1, 1, 1, 2, 4),
        pause: float = 0.05,
    ) -> Result:
        """A program that says "up" and goes on for so many seconds, which it is told; meanwhile
        workers are killed at random. It has ended well all the same."""
        rng = random.Random(int(os.environ["MPGORT_SEED"]))
        p = self.start(source, str(seconds), *args, env={"MPGORT_MIGRATE": migrate})
        assert p.line() == "up"
        end = time.monotonic() + seconds * 0.9
        while time.monotonic() < end:
            p.kill_some(rng, numbers)
            time.sleep(rng.random() * pause)
        r = p.wait(60)
        assert r.status == 0, (r.out, r.err)
        return r

    def nothing_left(self, running: Running) -> None:
        """INV nothing-left, for one program whose M0 has ended."""
        deadline = time.monotonic() + GONE_S
        while (left := running.processes()) and time.monotonic() < deadline:
            time.sleep(0.002)
        running.end()
        assert not left, f"{GONE_S} s after M0's end there are still {left}"
        if self.killed:
            from mpgort import _segment

            _segment.sweep()
        assert running.pid not in shm_names(running.started).values()
        # Any other's may be of another session of tests beside this one, which kills makers, and
        # sweeps; or of a process that this program has started.
        wait_until("no name is left in /dev/shm", lambda: not shm_names(running.started))

    def finish(self) -> None:
        for running in self.all:
            if running.popen.poll() is None:
                running.end()
                running.popen.communicate()
                pytest.fail("the test ended before its program")
        for running in self.all:
            self.nothing_left(running)


@pytest.fixture
def program() -> Iterator[Programs]:
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(Path(folder))
        yield programs
        programs.finish()


@pytest.fixture
def segment() -> Iterator[Callable[..., object]]:
    """segment(procs=1, ...) -> a formatted mpgort._core.Program, this process its M0."""
    from mpgort import _core, _segment

    made = []

    def make(
        procs: int = 1,
        max_goroutines: int = 1 << 16,
        heap_bytes: int = 64 << 20,
        heavy_bytes: int = 16384,
    ) -> _core.Program:
        prog = _core.Program.create(
            _segment.make(), procs, max_goroutines, heap_bytes, heavy_bytes, 0, False, 0, "test"
        )
        made.append(prog)
        return prog

    yield make
    for prog in made:
        prog.detach()


@pytest.fixture(params=[0, 1, 2, 4], ids=lambda n: f"procs={n}")
def procs(request: pytest.FixtureRequest) -> int:
    """A number of workers: none, one, as many as processors, more."""
    return int(request.param)


MODES = (os.environ["MPGORT_MIGRATE"],) if "MPGORT_MIGRATE" in os.environ else ("auto", "always")


@pytest.fixture(
    params=[(p, m) for m in MODES for p in (0, 1, 2, 4)],
    ids=lambda x: f"procs={x[0]}-{x[1]}",
)
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """run(main, *args) -> main's value: on each number of workers, parks that move or may not; in
    the mode that the whole suite runs in, if it is given one."""
    import mpgort

    procs, migrate = request.param
    monkeypatch.setenv("MPGORT_MIGRATE", migrate)
    return lambda main, *args: mpgort.run(main, *args, procs=procs)


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """What pytest and the modules before have made is not walked by each collection of a test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is light, heavy or at home by its own nature: MPGORT_MIGRATE=always and
    =never, which the whole suite may run under, decide that for every goroutine."""
    monkeypatch.setenv("MPGORT_MIGRATE", "auto")


@pytest.fixture
def rt() -> Iterator[Any]:
    """A runtime that is found to have nothing left, and nothing wrong, at the end."""
    import mpgort

    with mpgort.Runtime(2) as runtime:
        yield runtime
        wait_until("the arrays' memory is given back", lambda: large_bytes(runtime) == 0)
        comes_to_rest(runtime._prog)


def large_bytes(rt: Any) -> int:
    n: int = rt.stats()["large_bytes"]
    return n


@pytest.fixture(scope="module")
def joblib_ends() -> Iterator[None]:
    """The executors that the backend keeps for joblib's next call are not there for other tests."""
    yield
    from mpgort import joblib

    while joblib._executors:
        joblib._executors.popitem()[1][1].shutdown()


# ---- ports -----------------------------------------------------------------------------------

PORTS = Path(__file__).parent / "go"
SEEDS = range(1, 1 + int(os.environ.get("MPGORT_SHAKE", "0")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if SEEDS and PORTS in metafunc.definition.path.parents and "seed" not in metafunc.fixturenames:
        metafunc.fixturenames.append("seed")
        metafunc.parametrize("seed", SEEDS, indirect=True, ids="seed={}".format)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ways: dict[str, list[pytest.Item]] = {}  # of one port under one seed
    for item in items:
        params = dict(item.callspec.params) if isinstance(item, pytest.Function) and SEEDS else {}
        if params.keys() >= {"seed"} and params.keys() & {"run", "procs"}:
            which = [f"{k}={v!r}" for k, v in sorted(params.items()) if k not in ("run", "procs")]
            ways.setdefault(f"{item.path} {item.originalname} {which}", []).append(item)
    spared = [
        item
        for same in ways.values()
        for i, item in enumerate(same)
        if i != item.callspec.params["seed"] % len(same)
    ]
    if spared:
        config.hook.pytest_deselected(items=spared)
        left = set(map(id, spared))
        items[:] = [item for item in items if id(item) not in left]


@pytest.fixture
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the schedule shaker, for all programs of the test."""
    monkeypatch.setenv("MPGORT_DEBUG", f"shake={request.param}")
    return int(request.param)


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each program that a port runs in this process leaves a sound segment behind."""
    if PORTS not in request.path.parents:
        yield
        return
    from sound import looking

    from mpgort import _host

    found: list[str] = []
    monkeypatch.setattr(_host.Host, "stop", looking(found.extend))
    yield
    assert found == []
