"""The command `mpgort`: one function per command, each returning the exit status.

  mpgort run FILE [ARG...]      calls main(*ARG) of FILE as goroutine 1; a panic or deadlock is
                                printed as Go does, with status 2
  mpgort demo [NAME] [option]   shows what the runtime does, and checks the result
  mpgort ps                     the programs that run now
  mpgort top [PROGRAM]          what the Ms of one do, again every second
  mpgort stack PROGRAM          every goroutine of one, as Go prints it
  mpgort trace PROGRAM|FILE     records what it does, for Perfetto (ui.perfetto.dev)
  mpgort doctor                 what this machine allows, and what to change
  mpgort bench [option]         bench/figures.py of a source checkout

FILE is executed as a module named `__mp_main__`, the name under which multiprocessing re-imports a
main script: its `if __name__ == "__main__":` block stays out, and its functions are found under
that name by every M, inherited by a fork or executed again elsewhere. Beside that the process looks
as if Python had started FILE: `sys.argv`, `sys.path[0]`, the traceback and the exit status."""

import argparse
import inspect
import itertools
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TextIO

import mpgort
from mpgort import _core, _doctor, _monitor, _trace, _traceback, demos
from mpgort._errors import BadSegment

ANSWER_S = 30  # a program that does not let a tracer in for so long does nothing else either

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def load_program(path: Path) -> ModuleType:
    """Executes the file as the main module of this process, and returns it.

    Raises what the file raises; SyntaxError if it does not compile, OSError if it is unreadable."""
    module = ModuleType("__mp_main__")
    module.__file__ = str(path)
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    if not sys.flags.safe_path:
        sys.path[0] = str(path.parent.resolve())
    exec(code, module.__dict__)
    return module


def below(tb: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this file on top: Python does not show its own either."""
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    return tb


def complain(text: str) -> int:
    print(f"mpgort: {text}", file=sys.stderr)
    return 2


def execute(file: str, argv: list[str], procs: int | None, wrap: Wrap | None = None) -> int:
    """Runs the main of a file, within `wrap` if given; the exit status."""
    path = Path(file)
    if path.is_dir():
        return complain(f"{path} is a directory: give a Python file")
    if not path.exists():
        return complain(f"no such file: {path}")
    sys.argv = [file, *argv]
    try:
        module = load_program(path)
        main = getattr(module, "main", None)
        if not callable(main):
            return complain(f"{path} has no function main: write `async def main(...)` in it")
        mpgort.run(main if wrap is None else wrap(main), *argv, procs=procs)
    except mpgort.GoroutinePanic as e:
        print(e, file=sys.stderr)
        return 2
    except mpgort.Deadlock as e:
        print(f"fatal error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        hook, tb = sys.excepthook, below(e.__traceback__)
        sys.excepthook = lambda kind, value, _: hook(kind, value.with_traceback(tb), tb)
        raise  # which ends this process as SIGINT does
    except Exception as e:
        tb = below(e.__traceback__)
        sys.excepthook(type(e), e.with_traceback(tb), tb)
        return 1
    return 0


def run(args: argparse.Namespace) -> int:
    return execute(args.file, args.args, args.procs)


def demo(args: argparse.Namespace) -> int:
    if args.list:
        for name in demos.NAMES:
            print(f"{name:<12} {demos.describe(name)}")
        return 0
    return demos.load(args.name).demo(args)


def ps(args: argparse.Namespace) -> int:
    print(f"{'PID':>8}  {'PROCS':>5}  {'GOROUTINES':>10}  {'UP':>8}  NAME")
    seen, refused = _monitor.look_at_all()
    for s, label in zip(seen, _monitor.labels(seen), strict=True):
        v, up = s.view, _monitor.brief(s.view.up_s)
        print(f"{label:>8}  {v.procs:>5}  {v.goroutines:>10}  {up:>8}  {v.name}")
    for r in refused:
        complain(f"program {r.running.pid}: {r.why}")
    return 0


def top(args: argparse.Namespace) -> int:
    from rich.live import Live

    try:
        seen = _monitor.choose(args.program)
        now, before = seen.view, None
        with Live(auto_refresh=False) as live:
            for turn in itertools.count(1):
                live.update(_monitor.top_table(now, before, args.interval), refresh=True)
                if turn == args.count:
                    break
                time.sleep(args.interval)
                if seen.prog.ended or not Path(f"/proc/{now.pid}").exists():
                    break
                with _monitor.reading(seen):
                    before, now = now, _monitor.view(seen.prog, now.pid)
    except (_monitor.NoProgram, BadSegment) as e:
        return complain(str(e))
    except KeyboardInterrupt:
        pass
    return 0


def stack(args: argparse.Namespace) -> int:
    try:
        seen = _monitor.choose(args.program)
        with _monitor.reading(seen):
            if args.leaks:
                leaks = _traceback.leaks(seen.prog)
                text = "".join(f"{leak}\n\twaits on {leak.on}\n\n" for leak in leaks)
            else:
                text = _traceback.dump(seen.prog)
    except (_monitor.NoProgram, BadSegment) as e:
        return complain(str(e))
    sys.stdout.write(text)
    return 0


def record(seen: _monitor.Seen, seconds: float) -> list[_trace.TraceEvent]:
    """What a running program does. For that this process is an M of it, takes its locks and follows
    what stands in it: damage it meets there ends the command (guard_alone).

    A signal that would end the command ends the recording: the program would go on with it."""
    for sig in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sig) == signal.SIG_DFL:
            signal.signal(sig, signal.default_int_handler)
    _core.guard_alone(ANSWER_S)
    prog = seen.running.attach(watches=False)
    _trace.start(prog)
    _core.guard_alone(0)
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    _core.guard_alone(ANSWER_S)
    events = _trace.stop(prog)
    prog.look()
    prog.mexit()
    _core.guard_alone(0)
    return events


def write_trace(f: TextIO, events: list[_trace.TraceEvent], name: str) -> None:
    json.dump(_trace.chrome(events, name), f)
    print(f"{len(events)} events in {f.name}: open it in ui.perfetto.dev", file=sys.stderr)


def trace(args: argparse.Namespace) -> int:
    events: list[_trace.TraceEvent] = []

    def traced(main: Callable[..., Any]) -> Callable[..., Any]:
        async def traced_main(*argv: str) -> Any:
            _trace.start()
            try:
                value = main(*argv)
                return await value if inspect.isawaitable(value) else value
            finally:
                events.extend(_trace.stop())

        return traced_main

    if Path(args.what).is_file():
        with open(args.out, "w") as f:
            try:
                return execute(args.what, args.args, args.procs, traced)
            finally:  # sys.exit() and Ctrl-C end a program, too
                write_trace(f, events, args.what)
    if args.args:
        return complain(f"arguments are a FILE's, and there is no file {args.what}")
    try:
        seen = _monitor.choose(args.what)
    except _monitor.NoProgram as e:
        return complain(f"{e}; nor is there a file {args.what}")
    except BadSegment as e:
        return complain(str(e))
    with open(args.out, "w") as f:
        try:
            events = record(seen, args.seconds)
        except FileNotFoundError:
            return complain(f"program {seen.view.pid}: it has ended")
        except (RuntimeError, MemoryError, OSError) as e:
            return complain(f"program {seen.view.pid}: {e}")
        except Exception as e:
            return complain(f"program {seen.view.pid}: {_monitor.damage(e)}")
        write_trace(f, events, seen.view.name)
    return 0


def doctor(args: argparse.Namespace) -> int:
    findings = _doctor.findings()
    for f in findings:
        print(f"{f.level:<5} {f.what:<14} {f.found}")
        if f.change:
            print(f"{'':<20} change: {f.change}")
    failed = sum(f.level == "fail" for f in findings)
    warned = sum(f.level == "warn" for f in findings)
    if failed:
        print(f"mpgort cannot run here: {failed} to change")
    else:
        print(f"mpgort can run here{f', {warned} to improve' if warned else ''}")
    return 1 if failed else 0


def bench(args: argparse.Namespace) -> int:
    figures = Path(__file__).parent.parent / "bench" / "figures.py"
    if not figures.exists():
        return complain("the benchmarks are in the source checkout only: bench/figures.py")
    sys.argv = [str(figures), *args.args]
    sys.path[0] = str(figures.parent)
    runpy.run_path(str(figures), run_name="__main__")
    return 0


def version() -> str:
    try:
        return metadata.version("mpgort")
    except metadata.PackageNotFoundError:  # imported from a checkout that is not installed
        return "(not installed)"


def count(text: str) -> int:
    """The value of --procs: 0 runs everything in this process."""
    n = int(text)
    if n < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more")
    return n


def positive(text: str) -> float:
    s = float(text)
    if not 0 < s < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: must be a positive number of seconds")
    return s


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpgort", description="Go's goroutine runtime for Python, over processes."
    )
    parser.add_argument("--version", action="version", version=f"mpgort {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    procs = {"type": count, "metavar": "N", "help": "worker processes (0: all in this one)"}

    p = commands.add_parser("run", help="run the function main of a Python file as goroutine 1")
    p.add_argument("--procs", **procs)  # type: ignore[arg-type]
    p.add_argument("file", metavar="FILE")
    p.add_argument("args", metavar="ARG", nargs=argparse.REMAINDER, help="main's arguments: text")
    p.set_defaults(call=run)

    p = commands.add_parser("demo", help="show what the runtime does (without a name: index)")
    p.add_argument("--list", action="store_true", help="name the demos")
    p.add_argument("--procs", **procs)  # type: ignore[arg-type]
    demos.load("index").options(p)
    p.set_defaults(call=demo, name="index")
    names = p.add_subparsers(metavar="NAME", title="demos")
    for name in demos.NAMES:
        q = names.add_parser(name, help=demos.describe(name))
        # Not given here, it keeps the value it may have before the name: demo --procs 2 skynet.
        q.add_argument("--procs", default=argparse.SUPPRESS, **procs)  # type: ignore[arg-type]
        demos.load(name).options(q)
        q.set_defaults(name=name)

    p = commands.add_parser("ps", help="the programs that run now")
    p.set_defaults(call=ps)

    which = {"metavar": "PROGRAM", "help": "its pid or name, as `mpgort ps` has it"}
    p = commands.add_parser("top", help="what the Ms of a running program do")
    p.add_argument("program", nargs="?", **which)  # type: ignore[arg-type]
    p.add_argument("--interval", type=positive, default=1.0, metavar="S", help="seconds, 1")
    p.add_argument("--count", type=count, default=0, metavar="N", help="how often; 0: until ended")
    p.set_defaults(call=top)

    p = commands.add_parser("stack", help="every goroutine of a running program, as Go prints it")
    p.add_argument("program", **which)  # type: ignore[arg-type]
    p.add_argument("--leaks", action="store_true", help="those that can never run again")
    p.set_defaults(call=stack)

    p = commands.add_parser("trace", help="record what a program does, for ui.perfetto.dev")
    p.add_argument("what", metavar="PROGRAM|FILE", help="pid or name, or a file to run")
    p.add_argument("args", metavar="ARG", nargs="*", help="arguments of FILE's main: text")
    p.add_argument("-o", "--out", required=True, metavar="OUT.json")
    p.add_argument("--seconds", type=positive, default=5.0, metavar="S", help="of a PROGRAM, 5")
    p.add_argument("--procs", **procs)  # type: ignore[arg-type]
    p.set_defaults(call=trace)

    p = commands.add_parser("doctor", help="what this machine allows, and what to change")
    p.set_defaults(call=doctor)

    p = commands.add_parser(
        "bench", help="measure this machine, peers beside (source checkout)", add_help=False
    )
    p.set_defaults(call=bench)
    return parser


def shown(call: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """The exit status of a command that shows something, to somebody who may not look to the end
    (`| head`), or in a place that has no room."""
    try:
        status = call(args)
        sys.stdout.flush()
    except BrokenPipeError:
        status = 1
    except OSError as e:
        status = complain(str(e))
    else:
        return status
    # What could not be written is not tried again at exit, with a message of Python's.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command == "bench":  # its options are those of bench/figures.py, --help too
        args.args = rest
    elif args.command == "trace" and not any(text.startswith("-") for text in rest):
        args.args += rest  # of FILE, after an option of ours
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    call: Callable[[argparse.Namespace], int] = args.call
    return call(args) if call in (run, bench) else shown(call, args)
