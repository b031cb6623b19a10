"""A pool under everything at once, for as long as you like: nothing lost, memory flat.

    python bench/soak.py                   ten minutes
    python bench/soak.py --seconds 60 --seed 3

Rounds of mixed work are given to a Runtime and an Executor, while workers are killed at random,
others are recycled, and tasks are cancelled, killed and timed out. A round is over when each of its
tasks has ended: with the right value, or with a reason that fits what it was. Whoever has not after
PATIENCE_S was lost. Between two rounds, at rest, the books are balanced (submitted = done + failed)
and what is held is measured: the shared heap's live bytes, continuations and what the segments
take of /dev/shm, and of the whole program, that is of all its processes, resident memory (shared
pages counted once), file descriptors, threads. From the first third on none of it may grow.

The workers of the two are young: few live for ten seconds. So there is a third program, whose one
worker gets all kinds of work that cost no worker, and must be the same process at the end, no
larger than in the middle.

The exit status is 1 if anything is not as it should be."""

import argparse
import collections
import gc
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from contenders import descendants, proportional_bytes

import mpgort
from mpgort import _segment, _service, chan, gosched, sleep, spawn

PROCS = 2
PATIENCE_S = 30.0
LONG_S = 60  # a run of so long has to have seen and measured everything
ROUND = 150  # tasks
SLACK_BYTES = 256 << 10  # of the heap; what a magazine or a warm chain may keep
SLACK_RSS = 16 << 20  # of one process
DEADLY = (9, 11, 20)  # of the ways in task(): those that cost a worker
COSTLY = ("hog", "dies", "killed", "late")  # as their kinds; a kill may strike where it runs
Died = mpgort.MDied
GROUP = (ExceptionGroup,)  # of a worker that died under a child


# ---- tasks -----------------------------------------------------------------------------------


def double(x: int) -> int:
    return 2 * x


def compute(ms: int) -> int:
    end = time.perf_counter() + ms / 1000
    while time.perf_counter() < end:
        pass
    return ms


def nap(ms: int) -> int:
    time.sleep(ms / 1000)
    return ms


def total(a: Any) -> float:
    return float(a.sum())


def negated(a: Any) -> Any:
    return -a


def fail(x: int) -> None:
    raise ValueError(x)


def die(x: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(x: int) -> None:
    os._exit(3)


async def echo(there: Any, back: Any, n: int) -> None:
    for _ in range(n):
        await back.send(await there.recv())


async def talk(n: int) -> int:
    there, back = chan(), chan()
    got = 0
    async with mpgort.Group() as g:  # ends with who opened it, should its worker die
        g.spawn(echo, there, back, n)
        for i in range(n):
            await there.send(i)
            got += await back.recv()
    return got


async def fan(n: int) -> int:
    hs = [spawn(double, i) for i in range(n)]
    return sum([await h for h in hs])


async def heavy(n: int) -> int:
    held = list(range(n))
    for _ in range(5):
        await gosched()
    return sum(held)


async def steps(n: int) -> int:
    ch, got = chan(1), 0
    for i in range(n):
        await ch.send(i)
        await gosched()
        got += await ch.recv()
    return got


async def wait_long(x: int) -> int:
    await sleep(3600)
    return x


class Lost(Exception):
    """A task has not ended: the rest need not be waited for."""


@dataclass
class Entry:
    """A task in the books."""

    kind: str
    end: Callable[[], Any]  # the value, or raises
    right: Callable[[Any], bool]
    may: tuple[type[BaseException], ...]


@dataclass
class Report:
    submitted: int = 0
    done: int = 0
    failed: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    rounds: int = 0
    samples: list[dict[str, float]] = field(default_factory=list)
    events: collections.Counter[str] = field(default_factory=collections.Counter)


class Soak:
    def __init__(self, seconds: float, seed: int, say: Callable[[str], None]) -> None:
        self.rng = random.Random(seed)
        self.seconds = seconds
        self.say = say
        self.report = Report()
        self.stop = threading.Event()
        self.rest = threading.Lock()  # held while nothing is to be disturbed
        self.rt = mpgort.Runtime(PROCS, max_pending=ROUND, name="soak-rt")
        self.calm = mpgort.Runtime(1, max_pending=ROUND, name="soak-calm")
        self.old = self.calm.spawn(os.getpid).result()
        self.ex = mpgort.Executor(PROCS, max_pending=ROUND, name="soak-ex")
        assert self.ex.submit(double, 1).result() == 2
        assert self.ex._engine is not None
        self.disturbed_ones = [self.rt, self.ex._engine.runtime]
        self.runtimes = [*self.disturbed_ones, self.calm]

    # ---- a round -----------------------------------------------------------------------------

    def spawned(self, kind: str, may: Any, right: Any, fn: Any, *args: Any, **how: Any) -> Entry:
        """In the calm program, now and then, if it costs no worker there."""
        calm = kind not in COSTLY and self.rng.random() < 0.2
        h = (self.calm if calm else self.rt).spawn(fn, *args, **how)
        deadline = time.monotonic() + PATIENCE_S

        def end() -> Any:
            return h.result(timeout=max(1.0, deadline - time.monotonic()))

        entry = Entry(kind, end, right, may if calm or "retries" in how else (Died, *may))
        if kind == "cancelled":
            h.cancel()
        elif kind == "killed":
            h.kill()
        return entry

    def submitted(self, kind: str, may: Any, right: Any, fn: Any, *args: Any) -> Entry:
        f = self.ex.submit(fn, *args)
        if kind == "future cancelled":
            f.cancel()
        return Entry(kind, lambda: f.result(timeout=PATIENCE_S), right, (Died, *may))

    def task(self) -> Entry:
        r = self.rng
        x = r.randrange(1000)
        a = np.full(r.choice([10, 10_000, 200_000]), x, dtype=float)
        ways: list[Callable[[], Entry]] = [
            lambda: self.spawned("plain", (), lambda v: v == 2 * x, double, x),
            lambda: self.spawned("batch", (), lambda v: v == 2 * x, double, x, priority="batch"),
            lambda: self.spawned("talk", GROUP, lambda v: v == 190, talk, 20),
            lambda: self.spawned("fan", (), lambda v: v == 380, fan, 20),
            lambda: self.spawned("heavy", (), lambda v: v == 199990000, heavy, 20_000),
            lambda: self.spawned("array", (), lambda v: v == a.sum(), total, a),
            lambda: self.spawned("cancelled", (mpgort.Cancelled,), never, wait_long, x),
            lambda: self.spawned("killed", (mpgort.Killed,), never, wait_long, x),
            lambda: self.spawned("late", (TimeoutError,), never, wait_long, x, timeout=0.02),
            lambda: self.spawned("hog", (TimeoutError,), never, compute, 10_000, timeout=0.05),
            lambda: self.spawned("fails", (ValueError,), never, fail, x),
            lambda: self.spawned("dies", (), never, die, x),
            lambda: self.spawned("again", (), lambda v: v == 5, nap, 5, retries=99),
            lambda: self.spawned("goes on", (), lambda v: v == 435, steps, 30, retries=99),
            lambda: self.submitted("future", (), lambda v: v == 2 * x, double, x),
            lambda: self.submitted("compute", (), lambda v: v == 3, compute, 3),
            lambda: self.submitted("nap", (), lambda v: v == 5, nap, 5),
            lambda: self.submitted("array back", (), lambda v: (v == -x).all(), negated, a),
            lambda: self.submitted("future talks", GROUP, lambda v: v == 190, talk, 20),
            lambda: self.submitted("future fails", (ValueError,), never, fail, x),
            lambda: self.submitted("leaves", (), never, leave, x),
            lambda: self.submitted(
                "future cancelled", (CancelledError,), lambda v: v == 2 * x, double, x
            ),
        ]
        weights = [1 if i in DEADLY else 12 for i in range(len(ways))]
        return r.choices(ways, weights)[0]()

    def settle(self, entry: Entry) -> None:
        report = self.report
        try:
            value = entry.end()
        except BaseException as e:
            report.failed[f"{entry.kind}: {type(e).__name__}"] += 1
            if isinstance(e, TimeoutError) and "its timeout" not in str(e):
                report.wrong.append(f"{entry.kind}: no end within {PATIENCE_S} s")
                self.dump()
                raise Lost from e
            if not isinstance(e, entry.may):
                report.wrong.append(f"{entry.kind}: {e!r}")
        else:
            report.done += 1
            if not entry.right(value):
                report.wrong.append(f"{entry.kind}: gave {value!r}"[:200])

    def dump(self) -> None:
        """What there is to see of a program that does not go on."""
        for rt in self.runtimes:
            self.report.wrong += [rt._prog.schedtrace(), rt.stack(), *rt._prog.check(False)]
            self.report.wrong.append(repr({k: v for k, v in rt.stats().items() if k != "ms"}))

    def round(self) -> None:
        entries = []
        for _ in range(ROUND):
            entries.append(self.task())
            self.report.submitted += 1
        n = self.rng.randrange(500)
        entries.append(
            Entry(
                "map",
                lambda: sum(self.ex.map(double, range(n))),
                lambda v: v == n * (n - 1),
                (Died,),
            )
        )
        self.report.submitted += 1
        for entry in entries:
            self.settle(entry)
        self.report.rounds += 1

    # ---- disturbance -------------------------------------------------------------------------

    def disturb(self) -> None:
        rng = random.Random(self.rng.random())
        while not self.stop.wait(rng.uniform(0.05, 0.6)):
            with self.rest:
                rt = rng.choice(self.disturbed_ones)
                if rng.random() < 0.25:
                    self.report.events["recycle() calls"] += rt.recycle(timeout=10)
                else:
                    self.kill_one(rt, rng)

    def kill_one(self, rt: mpgort.Runtime, rng: random.Random) -> None:
        """Only one that has come to its loop: three that die before are the end, as they should."""
        prog = rt._prog
        looping = _segment.m_table(prog)["looping"]
        pids = [pid for pid, slot in _service.workers(prog).items() if looping[slot]]
        if pids:
            try:
                os.kill(rng.choice(pids), signal.SIGKILL)
                self.report.events["killed"] += 1
            except ProcessLookupError:
                pass

    # ---- at rest -----------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Measures, when all workers stand and nothing runs."""
        report = self.report
        gc.collect()
        deadline = time.monotonic() + PATIENCE_S
        while any(rt.stats()["problems"] or rt.stats()["goroutines"] for rt in self.runtimes):
            if time.monotonic() > deadline:
                found = [(rt.stats()["problems"], rt.stats()["goroutines"]) for rt in self.runtimes]
                report.wrong.append(f"not at rest: {found}")
                self.dump()
                break
            time.sleep(0.01)
        stats = [rt.stats() for rt in self.runtimes]
        warm = sum(int(_segment.header(rt._prog)[0]["warm_bytes"]) for rt in self.runtimes)
        pids = [os.getpid(), *descendants(os.getpid())]
        report.samples.append(
            {
                "heap bytes": sum(s["live_bytes"] for s in stats),
                "continuations": sum(s["live_conts"] for s in stats),
                "committed bytes": sum(s["committed"] for s in stats) - warm,
                "segment bytes": segment_bytes() - warm,
                "program's bytes": sum(map(proportional_bytes, pids)) - warm,
                "this process's bytes": proportional_bytes(os.getpid()),
                "old worker's bytes": proportional_bytes(self.old),
                "descriptors": sum(entries(pid, "fd") for pid in pids),
                "threads": sum(entries(pid, "task") for pid in pids),
                "processes": len(pids),
            }
        )
        if self.old not in _service.workers(self.calm._prog):  # it may have got another beside it
            report.wrong.append("the worker that nobody harms was replaced")
        books = report.done + sum(report.failed.values())
        if books != report.submitted:
            report.wrong.append(f"{report.submitted} submitted, {books} ended")

    def flat(self) -> None:
        """The last third against the middle one."""
        samples, n = self.report.samples, len(self.report.samples) // 3
        if n < 3:
            too_few = f"memory was not judged: {len(samples)} rounds, and it takes 9"
            (self.report.wrong.append if self.seconds >= LONG_S else self.say)(too_few)
            return
        slack = {"heap bytes": SLACK_BYTES, "committed bytes": 8 << 20, "segment bytes": 8 << 20}
        for key in ("this process's bytes", "old worker's bytes"):
            slack[key] = SLACK_RSS
        slack["program's bytes"] = 2 * SLACK_RSS
        slack.update(descriptors=30, threads=4)  # of two workers that are just being replaced
        for key in samples[0]:
            middle = statistics.median(s[key] for s in samples[n : 2 * n])
            last = statistics.median(s[key] for s in samples[2 * n :])
            self.say(f"{key:20} {middle:14,.0f} -> {last:14,.0f}")
            if last > middle + slack.get(key, 2):
                self.report.wrong.append(f"{key} grew from {middle:,.0f} to {last:,.0f}")

    def disturbed(self) -> None:
        """A long run has seen everything that it is there for."""
        seen = {text.rpartition(": ")[2] for text in self.report.failed} | self.report.events.keys()
        for what in (
            "MDied",
            "Killed",
            "Cancelled",
            "CancelledError",
            "TimeoutError",
            "ValueError",
        ):
            if what not in seen:
                self.report.wrong.append(f"no task has ended with {what}")
        for what in ("killed", "recycle() calls"):
            if self.report.events[what] == 0:
                self.report.wrong.append(f"never {what}")
        if self.report.events["deaths counted"] < self.report.events["killed"]:
            self.report.wrong.append("fewer deaths were counted than workers killed")

    def run(self) -> Report:
        disturber = threading.Thread(target=self.disturb)
        disturber.start()
        end = said = time.monotonic()
        end += self.seconds
        try:
            while time.monotonic() < end and not self.report.wrong:
                self.round()
                with self.rest:
                    self.at_rest()
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    r = self.report
                    self.say(f"{r.rounds} rounds, {r.submitted} tasks, {dict(r.events)}")
        except Lost:
            pass
        finally:
            self.stop.set()
            disturber.join()
            for rt in self.runtimes:
                until = time.monotonic() + 20  # what a reaper is in the middle of looks wrong
                while (faults := rt._prog.check(False)) and time.monotonic() < until:
                    time.sleep(0.002)
                self.report.wrong += [f"the checker: {f}" for f in faults]
                for key in ("deaths", "replacements", "recycled"):
                    self.report.events[key + " counted"] += rt.stats()[key]
            self.ex.shutdown()
            self.calm.shutdown(drain=False)
            if not self.rt.shutdown(drain=True, timeout=5) and not self.report.wrong:
                self.report.wrong.append("the runtime does not drain")
        self.flat()
        if self.seconds >= LONG_S:
            self.disturbed()
        return self.report


def never(value: Any) -> bool:
    return False


def entries(pid: int, what: str) -> int:
    """How many entries /proc/PID/what has; of a process that has just ended, none."""
    try:
        return len(os.listdir(f"/proc/{pid}/{what}"))
    except OSError:
        return 0


def segment_bytes() -> int:
    """What the segments that this process has open take of /dev/shm."""
    taken = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/shm/mpgort-"):
                found = os.fstat(int(fd))
                taken[found.st_ino] = found.st_blocks * 512
        except OSError:
            pass
    return sum(taken.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.seconds:.0f} s", flush=True)
    report = Soak(args.seconds, args.seed, lambda text: print(text, flush=True)).run()
    print(f"{report.rounds} rounds: {report.submitted} submitted = {report.done} done", end=" + ")
    print(f"{sum(report.failed.values())} failed")
    for why, n in sorted(report.failed.items()):
        print(f"  {n:7} {why}")
    print(", ".join(f"{n} {what}" for what, n in sorted(report.events.items())))
    for text in report.wrong:
        print("WRONG:", text)
    print("all is well" if not report.wrong else f"{len(report.wrong)} things are wrong")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
