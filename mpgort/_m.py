"""An M from its first line to its last: what a worker process does before and after its loop.

A worker is forked by the keeper, or (start_method="spawn") a fresh interpreter that the keeper has
started. It runs goroutines until the program's end and leaves by os._exit: the interpreter's own
end (atexit, finalizers) belongs to M0, whose copy it may be.

A WORKER'S START
  1 asks to be ended with M0 (arm_pdeathsig), before anything that can take long;
  2 takes an M slot: from here on the keeper can name it, and a new keeper can find it;
  3 looks whether its keeper is still the one that made it. If not, no keeper knows of it: it goes.
    After 2, so that a keeper that dies later leaves a worker that its successor finds in the table;
  4 runs the initializer, then the loop.

The report socket (SEQPACKET: a message is whole or not there) carries to M0 the one thing that has
no place in the segment: an exception before there is a goroutine to raise it in."""

from __future__ import annotations

import importlib.util
import os
import pickle
import pkgutil
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from mpgort import _byvalue, _core

REPORT_BYTES = 60_000
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)  # before a replacement's initializer is tried again
_BLAS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")

# True while this process imports the user's main module because M0 has it as __main__: a program
# started by that import would start itself again and again.
importing_main = False
former_main: types.ModuleType | None = None  # kept: its end would clear what its functions use


class Wires(NamedTuple):
    """The descriptors that every process of a program holds; the same numbers in all of them."""

    segment: int
    m0: int  # pidfd of M0
    kick: int  # eventfd that wakes the keeper
    report: int  # socket to M0
    plan: int  # memory file with the pickled plan, -1 where the plan was inherited


class Plan(NamedTuple):
    """What a worker is to do beside its loop."""

    method: str
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    blas_threads: int | None
    max_rss: int
    max_tasks: int
    schedtrace_ms: int
    outlives_sigterm: bool = False  # M0 drains at SIGTERM, which the whole group may be sent
    inherited: tuple[int, ...] = ()  # descriptors of what is in initargs, where it is pickled


class Inherited:
    """Stands for the process that multiprocessing is about to start, while an initializer and its
    arguments are pickled: locks, queues and shared values of multiprocessing cross only so. Whoever
    starts a fresh interpreter hands the descriptors on to it, under the same numbers."""

    def __init__(self) -> None:
        from multiprocessing import popen_spawn_posix

        self.fds: list[int] = []
        self.DupFd = popen_spawn_posix._DupFd

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(os.dup(fd))
        return self.fds[-1]

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def dump(self, dump: Callable[[Any], Any], o: Any) -> bytes:
        from multiprocessing import context

        them: Any = context
        them.set_spawning_popen(self)
        try:
            return bytes(dump(o))
        except BaseException:
            self.close()
            raise
        finally:
            them.set_spawning_popen(None)


def dump_plan(plan: Plan) -> tuple[int, tuple[int, ...]]:
    """The plan and this process's main module as a memory file that fresh interpreters read, and
    the descriptors that they are to inherit. The caller closes all of these.

    Raises RuntimeError (by multiprocessing) while the main module is only being imported, and what
    pickle raises for an initializer that cannot cross."""
    from multiprocessing import reduction, spawn

    vars(sys.modules["__main__"]).setdefault("__spec__", None)  # pdb's has none; it is asked for
    try:
        prep = dict(spawn.get_preparation_data("mpgort"))
    except FileNotFoundError as e:
        raise RuntimeError(
            "the current directory is no more, and new interpreters are to start there: os.chdir() "
            "to one that is, or start_method='fork'"
        ) from e
    prep["authkey"] = bytes(prep["authkey"])
    if not os.path.isfile(prep.get("init_main_from_path", __file__)):
        del prep["init_main_from_path"]  # "<stdin>"
    once = (plan.initializer, plan.initargs)
    inherited = Inherited()
    try:
        if not prep.keys() & {"init_main_from_name", "init_main_from_path"}:
            raise LookupError("what is in the main module is found by nobody else")
        rest = inherited.dump(reduction.ForkingPickler.dumps, once)
    except Exception:
        rest = inherited.dump(_byvalue.dump_initializer, once)
    fds = tuple(inherited.fds)
    bare = plan._replace(initializer=None, initargs=(), inherited=fds)
    fd = os.memfd_create("mpgort-plan")
    with open(fd, "wb", closefd=False) as f:
        f.write(pickle.dumps((prep, bare, rest)))
    return fd, fds


def load_plan(wires: Wires, worker: bool) -> Plan:
    """Makes this fresh interpreter resemble M0 (sys.path, sys.argv, main module), returns the plan.

    A keeper that forks no worker needs neither the main module nor the initializer: worker False
    leaves them out then."""
    global importing_main
    from multiprocessing import process, spawn

    data = os.pread(wires.plan, os.fstat(wires.plan).st_size, 0)
    prep, plan, rest = pickle.loads(data)
    assert isinstance(plan, Plan)
    if not worker and plan.method == "spawn":
        return plan
    current: Any = process.current_process()
    current._inheriting = importing_main = True
    name, path = (prep.pop(f"init_main_from_{k}", None) for k in ("name", "path"))
    try:
        spawn.prepare(prep)
        import_main(name, path)
    finally:
        del current._inheriting
        importing_main = False
    initializer, initargs = _byvalue.load_initializer(rest)
    return plan._replace(initializer=initializer, initargs=initargs, inherited=())


def import_main(name: str | None, path: str | None) -> None:
    """Executes M0's main module, known by name (`python -m`) or path, as `__mp_main__`, without its
    main block.

    multiprocessing's own way leaves a copy of the globals in sys.modules: functions would see
    others than frames that have moved here. As there, the __main__ of a package stays out: such a
    file may have no other than main code."""
    global former_main
    module = types.ModuleType("__mp_main__")
    if name is not None:
        if name.rpartition(".")[2] == "__main__":
            return
        spec = importlib.util.find_spec(name)
        code = getattr(spec and spec.loader, "get_code", lambda _: None)(name)
        if spec is None or code is None:
            raise ImportError(f"the main module {name} is not found here", name=name)
        module.__spec__, module.__loader__ = spec, spec.loader
        module.__package__, module.__file__ = spec.parent, spec.origin
    elif path is not None:
        if os.path.splitext(os.path.basename(path))[0] == "ipython":
            return  # no main block: it would start
        with open(path, "rb") as f:
            code = pkgutil.read_code(f)  # of a .pyc
        if code is None:
            code = compile(Path(path).read_bytes(), path, "exec")
        module.__package__, module.__file__ = "", path
    else:
        return
    former_main = sys.modules["__main__"]
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    exec(code, module.__dict__)


def command(entry: str, wires: Wires) -> list[str]:
    """The command line of a fresh interpreter that calls mpgort.<entry>.main(*wires, parent)."""
    from multiprocessing import spawn, util

    args = ", ".join(map(str, (*wires, os.getpid())))
    # sys.path first: mpgort itself may have been found through an entry that only M0 has added.
    # No name of ours in __main__: a session's have its place.
    load = f"__import__('mpgort.{entry}', fromlist=['main']).main({args})"
    code = f"import sys; sys.path[:] = {sys.path!r}; {load}"
    flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [os.fsdecode(spawn.get_executable()), *flags, "-c", code]


def exec_fresh(entry: str, wires: Wires, inherited: tuple[int, ...]) -> int:
    """Starts mpgort.<entry>.main in a fresh interpreter that inherits these; returns its pid.

    It starts with SIGINT and SIGTERM blocked: they would find Python's own handlers there until
    settle()."""
    from multiprocessing import util

    argv = command(entry, wires)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        pid: int = util.spawnv_passfds(os.fsencode(argv[0]), argv, (*wires, *inherited))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def settle() -> None:
    """For keeper and workers: signals and stdin as befits a process that nobody at a terminal
    knows.

    Ctrl-C and Ctrl-\\ go to the whole foreground group and mean M0. Handlers written in Python were
    M0's; without this a worker would run them. A SIGTERM that came before this is forgotten."""
    for sig in signal.valid_signals():
        if callable(signal.getsignal(sig)):
            signal.signal(sig, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    while null < 3:  # stdin, or stdout, was closed: nothing else is opened under their numbers
        null = os.dup(null)
    os.close(null)


def nothing(sig: int, frame: FrameType | None) -> None:
    """A handler that does nothing. Unlike SIG_IGN it ends at an exec: a command that a goroutine
    starts can be interrupted."""


def flush() -> None:
    """Writes out stdout and stderr; a closed or broken one is none of our business."""
    for f in (sys.stdout, sys.stderr):
        try:
            f.flush()
        except (AttributeError, ValueError, OSError):
            pass


def limit_blas(n: int | None) -> None:
    """For libraries that are loaded from here on: their thread pools read these once."""
    if n is not None:
        for name in _BLAS:
            os.environ[f"{name}_NUM_THREADS"] = str(n)


def report(wires: Wires, exc: BaseException, where: str) -> None:
    """Sends exc to M0, which raises it from run() or from the Runtime."""
    text = "".join(traceback.format_exception(exc))
    try:
        data = pickle.dumps((exc, where, text))
        pickle.loads(data)
    except Exception:
        data = b""
    if not data or len(data) > REPORT_BYTES:
        stand_in = RuntimeError(f"{type(exc).__name__}: {exc}"[:1000])
        data = pickle.dumps((stand_in, where, text[-REPORT_BYTES // 2 :]))
    s = socket.socket(fileno=wires.report)  # no dup: there may be no descriptor for it
    try:
        s.send(data)
    except OSError:
        sys.stderr.write(text)  # M0 is gone, or its queue is full of the same
    finally:
        s.detach()


def live(prog: _core.Program, wires: Wires, plan: Plan, parent: int) -> NoReturn:
    """A worker's life. `parent` is the pid of the keeper that made it. Never returns."""
    status = 1
    try:
        _core.arm_pdeathsig(wires.m0, parent)
        signal.signal(signal.SIGTERM, nothing if plan.outlives_sigterm else signal.SIG_DFL)
        signal.siginterrupt(signal.SIGTERM, not plan.outlives_sigterm)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for sig in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(sig, nothing)
            signal.siginterrupt(sig, False)
        try:
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        except (AttributeError, ValueError):
            pass  # replaced by something that is no text file
        if "random" in sys.modules:
            sys.modules["random"].seed()
        prog.known = None
        os.register_at_fork(after_in_child=lambda: prog.after_fork(False))
        begin_as_child(prog.minit(_core.M_WORKER))
        if os.getppid() == parent:
            status = 0 if initialize(prog, wires, plan) else 1
            if status == 0:
                prog.max_tasks = plan.max_tasks
                prog.max_rss = plan.max_rss
                prog.work()
                end_as_child()
        prog.mexit()
    except BaseException as e:
        status = 1
        report(wires, e, "a worker")
    finally:
        flush()
        os._exit(status)


def begin_as_child(number: int) -> None:
    """What multiprocessing does in a process that it has forked: its queues and proxies of before
    have no threads and connections here; and a task may ask which process it is in."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._finalizer_registry.clear()
        util._run_after_forkers()
        process: Any = sys.modules["multiprocessing.process"].current_process()
        process._identity, process._name = (number,), f"mpgort-{number}"


def end_as_child() -> None:
    """As at the end of one: what tasks have put into its queues is written out."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._run_finalizers()


def initialize(prog: _core.Program, wires: Wires, plan: Plan) -> bool:
    """Runs the initializer; False: it failed, and M0 has been told, which is the program's end.

    Where no worker stands yet that is at once: it is wrong, and somebody is there to see it. One
    that takes another's place, perhaps days later, tries it again after each of PAUSES_S: what it
    connects to may be starting anew. Meanwhile the others work, stats() says that one is missing,
    and stderr why."""
    if plan.initializer is None:
        return True
    pauses = iter(PAUSES_S)
    while True:
        try:
            plan.initializer(*plan.initargs)
            return True
        except BaseException as e:
            pause = next(pauses, None) if isinstance(e, Exception) and stood(prog) else None
            if pause is None:
                report(wires, e, "the initializer of a worker")
                return False
            sys.stderr.write(
                f"mpgort: the initializer of a worker failed, again in {pause} s: "
                f"{type(e).__name__}: {e}\n"
            )
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if prog.ended:
                return False
            time.sleep(0.02)


def stood(prog: _core.Program) -> bool:
    """Whether any worker of the program has come to its loop."""
    from mpgort import _segment

    head = _segment.header(prog)[0]
    return bool(head["replaced"] or _segment.m_table(prog)["looping"].any())


def main(segment: int, m0: int, kick: int, report_fd: int, plan_fd: int, parent: int) -> NoReturn:
    """Entry of a fresh interpreter (start_method="spawn")."""
    wires = Wires(segment, m0, kick, report_fd, plan_fd)
    try:
        _core.arm_pdeathsig(m0, parent)
        settle()
        plan = load_plan(wires, worker=True)
        prog = _core.Program.attach(segment)
        prog.set_kick_fd(kick)
        live(prog, wires, plan, parent)
    except BaseException as e:
        report(wires, e, "the start of a worker")
    os._exit(1)
