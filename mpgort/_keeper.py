"""The keeper: the one process that makes Ms, and Go's sysmon.

It is single-threaded and holds no goroutine, so forking from it is safe and cheap at any time,
whatever threads the caller's process has. Its loop is C (shm_sysmon): it retakes the Ps of blocked
Ms, asks for preemption, pays wake-ups nobody paid, and sleeps long when nothing is due; it comes
back here only for what happens to processes.

INV nothing-left, the keeper's part (the Ms' part is in _core/pdeath.c)
  M0 dies       its pidfd becomes readable in sysmon: every M is killed, then the keeper ends.
  the end       hdr->shutdown: Ms leave by themselves; who is still there after GRACE_S is killed.
                The keeper's exit status 0 tells M0 that none is left.
  it is killed  M0 starts another, which adopts the living Ms: M table -> pid -> pidfd. A pid may
                have been reused, so one is believed only while it has this segment mapped.

A DEATH, of an M that still has its slot: the slot is reaped (shm/reap.c: the goroutines that were
running or at home there end with MDied, everything else is where it was), then another M takes its
place. The dead process stays a zombie until it is reaped, so that its pid cannot be another's.
Without a slot it either was never an M, or gave it back: it retired.
A keeper that dies meanwhile is reaped by its successor, which then reaps anew whom it was at. One
that dies as it forks leaves a worker that may take a slot when the successor has looked: it finds
that its parent is gone, and leaves (_m.live). Should it die instead, nobody watches it, so the
successor looks for such slots when all is quiet.

A SYSTEM THAT REFUSES one more process now (ulimit -u and -n, memory) may have room later. A program
does not start without its workers; but one in a dead one's place, or a spare one, is tried again
every RETRY_S, and the others go on meanwhile (`stats()["problems"]` says so). When none is left,
and none can be had for PATIENCE_S, the program ends with the system's refusal.

A worker that dies again and again before it has come to its loop would be a fork bomb: after
STILLBORN in a row the keeper gives up and says so. SIGKILL comes from outside, from somebody who
kills workers as they come or from the kernel out of memory: of that it bears more, and of what it
does not know, which is how those ended that another keeper had started."""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
from typing import NoReturn

from mpgort import _core, _m
from mpgort._errors import start_error
from mpgort._m import Plan, Wires

GRACE_S = 0.1
STOP_S = 1.0
RETRY_S = 0.1
PATIENCE_S = 10.0
STILLBORN = 3
KILLED_YOUNG = 20
UNKNOWN_STATUS = -1  # of an M that was somebody else's child


def maps_segment(pid: int, fd: int) -> bool:
    """Whether the process has the shared-memory object behind fd mapped."""
    st = os.fstat(fd)
    key = f" {os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x} {st.st_ino} "
    try:
        with open(f"/proc/{pid}/maps") as f:
            return any(key in line for line in f)
    except OSError:
        return False


def dead(pidfd: int) -> bool:
    p = select.poll()
    p.register(pidfd, select.POLLIN)
    return bool(p.poll(0))


def adopt(prog: _core.Program, skip: set[int]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The workers in the M table beside those of the pids in skip: living ones as
    (slot, pid, pidfd), and the slots of those that have died unseen."""
    living: list[tuple[int, int, int]] = []
    lost = []
    for slot, kind, pid, _ in prog.slots():
        if kind not in (_core.M_WORKER, _core.M_AUX) or pid in skip or pid == prog.pid0:
            continue
        if any(pid == known for _, known, _ in living):
            continue
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            lost.append(slot)
            continue
        # In this order: what has the mapping while the pidfd is alive is the process of the pidfd.
        if maps_segment(pid, prog.fd) and not dead(fd):
            living.append((slot, pid, fd))
        else:
            os.close(fd)
            lost.append(slot)
    return living, lost


def end(crew: list[tuple[int, int, int]], grace: float) -> None:
    """Waits until all of (slot, pid, pidfd) have ended, killing them after `grace` seconds."""
    left = {fd: pid for _, pid, fd in crew}
    p = select.poll()
    for fd in left:
        p.register(fd, select.POLLIN)
    deadline = time.monotonic() + grace
    killed = False
    while left:
        if not killed and time.monotonic() >= deadline:
            killed = True
            for fd in left:
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        wait_s = max(deadline - time.monotonic(), 0.0)
        for fd, _ in p.poll(None if killed else wait_s * 1000 + 1):
            p.unregister(fd)
            reap(left.pop(fd))


def stopped(pid: int, pidfd: int) -> bool:
    """Waits until a process that was sent SIGSTOP stands still; False if it has ended, or does not
    within STOP_S (it is in a system call that cannot be interrupted)."""
    deadline = time.monotonic() + STOP_S
    while not dead(pidfd) and time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as f:
                if f.read().rpartition(")")[2].split()[0] == "T":
                    return True
        except OSError:
            return False
        time.sleep(0.0005)
    return False


def reap(pid: int) -> int:
    """The wait status of a process that has ended, UNKNOWN_STATUS if it was not our child."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return UNKNOWN_STATUS


def status_of(pid: int) -> int:
    """As reap(), of one that has ended and stays a zombie."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return UNKNOWN_STATUS
    assert info is not None
    return info.si_status << 8 if info.si_code == os.CLD_EXITED else info.si_status


def describe(status: int, when: str = "") -> str:
    """What befell processes that ended with this wait status."""
    if os.WIFSIGNALED(status):
        return f"were killed {when}by {signal.Signals(os.WTERMSIG(status)).name}"
    if os.WIFEXITED(status):
        return f"exited {when}with status {os.WEXITSTATUS(status)}"
    return f"died {when}".rstrip()


class Keeper:
    def __init__(self, prog: _core.Program, wires: Wires, plan: Plan) -> None:
        self.prog = prog
        self.wires = wires
        self.plan = plan
        # (slot or -1, pid, pidfd), as keeper_wait takes it
        self.crew: list[tuple[int, int, int]] = []
        # Workers that died in a row before they came to their loop; of these, not by a SIGKILL.
        self.stillborn = self.by_themselves = 0
        self.owed = 0  # workers that the system has refused
        self.alone_since = 0.0  # when the first was refused while there was none
        self.successor = False  # of another keeper

    def start_m(self) -> None:
        try:
            self.start_process()
        except OSError as e:
            raise start_error(e) from e

    def needed(self) -> int:
        """How many workers there are to be: beside one that stands in a call that blocks, a spare.
        It was asked for once; it may have died since, or the keeper that was asked."""
        return self.prog.procs + self.prog.outside()

    def start_process(self) -> None:
        if self.plan.method == "spawn":
            pid = _m.exec_fresh("_m", self.wires, self.plan.inherited)
        else:
            me = os.getpid()
            pid = os.fork()
            if pid == 0:
                try:
                    self.prog.after_fork(True)
                    for _, _, fd in self.crew:
                        os.close(fd)
                    _m.live(self.prog, self.wires, self.plan, me)
                finally:
                    os._exit(1)
        try:
            self.crew.append((-1, pid, os.pidfd_open(pid)))
        except OSError:
            os.kill(pid, signal.SIGKILL)  # nobody would learn of its death
            self.settle(pid, status_of(pid))
            reap(pid)
            raise

    def try_m(self) -> None:
        """start_m, or owing it. Raises OSError if there have been no workers for too long."""
        try:
            self.start_m()
            self.alone_since = 0.0
        except OSError:
            now = time.monotonic()
            if self.crew or self.alone_since == 0:
                self.alone_since = now
            elif now - self.alone_since > PATIENCE_S:
                raise
            self.owed += 1
            if not self.plan.schedtrace_ms:  # else it is on anyway
                signal.setitimer(signal.ITIMER_REAL, RETRY_S, RETRY_S)

    def pay(self) -> None:
        """Tries again to start what is owed."""
        owed, self.owed = self.owed, 0
        for _ in range(owed):
            self.try_m()
        if self.owed == 0 and not self.plan.schedtrace_ms:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def bury(self, index: int) -> None:
        """The M at this place of the crew has died."""
        _, pid, fd = self.crew.pop(index)
        status = status_of(pid)
        looped, had_slot = self.settle(pid, status)
        reap(pid)
        os.close(fd)
        if self.prog.ended:
            return
        # An adopted one may have found that its parent was gone (_m.live), and left as well.
        if looped or (status in (0, UNKNOWN_STATUS) and not had_slot):
            self.stillborn = self.by_themselves = 0
            if len(self.crew) < self.needed():  # it was not one too many
                self.prog.replaced()
                self.try_m()
        elif os.WIFSIGNALED(status) or had_slot:
            self.stillborn += 1
            self.by_themselves += status not in (UNKNOWN_STATUS, signal.SIGKILL)
            if self.stillborn < KILLED_YOUNG and self.by_themselves < STILLBORN:
                self.try_m()
            else:
                n = self.by_themselves if self.by_themselves == STILLBORN else self.stillborn
                text = f"{n} workers in a row {describe(status, 'at their start ')}"
                _m.report(self.wires, RuntimeError(text), "the keeper")
        # else: an exception at its start, which it has reported itself

    def settle(self, pid: int, status: int) -> tuple[bool, bool]:
        """Reaps the slots of a process that has ended: whether it had come to its loop, whether it
        had a slot at all."""
        looped = had_slot = False
        for slot, kind, owner, _ in self.prog.slots():
            if owner == pid and kind != _core.M_M0 and not self.prog.ended:
                looped |= self.prog.reap(slot, status)
                had_slot = True
        return looped, had_slot

    def bury_strays(self) -> None:
        """Reaps the slots of those that are nobody's and have died."""
        living, lost = adopt(self.prog, {pid for _, pid, _ in self.crew})
        for _, _, fd in living:
            os.close(fd)  # it will leave
        for slot in lost:
            if not self.prog.ended:
                self.prog.reap(slot, UNKNOWN_STATUS)

    def kill(self, index: int) -> None:
        """Ends an M for the goroutine that will not yield there (shm/kill.c). It is stopped first:
        what runs there when the signal arrives may be another goroutine."""
        slot, pid, fd = self.crew[index]
        if slot < 0:
            slot = self.prog.slot_of(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
            stands = stopped(pid, fd)
            if stands and slot >= 0 and self.prog.kill_check(slot):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            signal.pidfd_send_signal(fd, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it has died meanwhile
        if dead(fd):  # before the next look: it would be named again, and no death be looked at
            self.bury(index)

    def run(self) -> None:
        """Until the program ends or M0 dies; nothing is left of the crew afterwards."""
        for slot, kind, pid, _ in self.prog.slots():
            if kind == _core.M_KEEPER and pid != os.getpid():
                self.prog.reap(slot, UNKNOWN_STATUS)
                self.successor = True
        living, lost = adopt(self.prog, set())
        self.crew += living
        for slot, _, fd in living:
            self.prog.kill_again(slot)  # a keeper may have died in kill()
            try:
                signal.pidfd_send_signal(fd, signal.SIGCONT)
            except ProcessLookupError:
                pass
        for slot in lost:
            self.prog.reap(slot, UNKNOWN_STATUS)
        signal.signal(signal.SIGALRM, self.schedtrace if self.plan.schedtrace_ms else _m.nothing)
        for _ in range(self.needed() - len(living)):
            if living:  # the program has long begun
                self.try_m()
            else:
                self.start_m()
        self.prog.calibrate()
        if self.plan.schedtrace_ms:
            period = self.plan.schedtrace_ms / 1000
            signal.setitimer(signal.ITIMER_REAL, period, period)
        while True:
            if self.owed and not self.prog.ended:
                self.pay()
            what = self.prog.keeper_wait(self.wires.m0, self.crew)
            if what >= 0:
                self.bury(what)
            elif what == _core.WAIT_SPARE:
                self.try_m()
            elif what <= _core.WAIT_KILL:
                self.kill(_core.WAIT_KILL - what)
            elif what == _core.WAIT_NOTHING and self.successor:
                self.bury_strays()
            elif what == _core.WAIT_M0_DIED or what == _core.WAIT_SHUTDOWN:
                break
        signal.setitimer(signal.ITIMER_REAL, 0)
        grace = GRACE_S if what == _core.WAIT_SHUTDOWN else 0
        end(self.crew, grace)
        end(adopt(self.prog, {pid for _, pid, _ in self.crew})[0], 0)

    def schedtrace(self, *_: object) -> None:
        sys.stderr.write(self.prog.schedtrace().rstrip("\n") + "\n")


def keep(prog: _core.Program, wires: Wires, plan: Plan, parent: int) -> NoReturn:
    """The keeper's life, in a process that is its own already. Never returns."""
    status = 1
    try:
        gc.freeze()  # nothing that M0 has left as garbage is collected, or copied, by its children
        _core.arm_pdeathsig(wires.m0, parent)
        _m.settle()
        _m.limit_blas(plan.blas_threads)
        prog.minit(_core.M_KEEPER)
        Keeper(prog, wires, plan).run()
        status = 0
    except BaseException as e:
        _m.report(wires, e, "the keeper")
    finally:
        _m.flush()
        os._exit(status)


def main(segment: int, m0: int, kick: int, report: int, plan_fd: int, parent: int) -> NoReturn:
    """Entry of a fresh interpreter (start_method "forkserver" and "spawn")."""
    wires = Wires(segment, m0, kick, report, plan_fd)
    try:
        _core.arm_pdeathsig(m0, parent)
        _m.settle()
        plan = _m.load_plan(wires, worker=False)
        prog = _core.Program.attach(segment)
        prog.set_kick_fd(kick)
        keep(prog, wires, plan, parent)
    except BaseException as e:
        _m.report(wires, e, "the start of the keeper")
    os._exit(1)
