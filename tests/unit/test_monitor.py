"""ps, top, stack and trace of a running program: seen from another process, nobody stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Programs, wait_until

from mpgort import _core, _monitor, _segment, _trace
from mpgort._errors import BadSegment

WAITING = """
    import mpgort
    from mpgort import chan, go

    async def stuck(ch):
        await ch.recv()

    async def pinned(ch):
        with open("/dev/null"):
            await ch.recv()

    async def main():
        ch = chan()
        for _ in range(3):
            go(stuck, ch)
        go(pinned, ch)
        mpgort.after_func(100, print)  # no goroutine until then
        print("up", flush=True)
        await mpgort.sleep(100)

    if __name__ == "__main__":
        mpgort.run(main, procs=2, name="waiting")
"""


@pytest.fixture
def waiting(program: Programs) -> Any:
    p = program.start(WAITING)
    assert p.line() == "up"
    seen = _monitor.choose(str(p.pid))

    def rests() -> bool:  # one worker may have run all, while the other comes up
        v = _monitor.view(seen.prog, p.pid)
        return v.waiting == {"chan receive": 4, "sleep": 1} and len(v.ms) == 4

    wait_until("all five goroutines wait, and all Ms are there", rests)
    yield seen
    seen.prog.detach()
    p.end()
    p.popen.communicate()


def mpgort(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mpgort", *args], capture_output=True, text=True, timeout=60
    )


def test_a_view_counts_the_goroutines_by_what_they_wait_for(waiting: _monitor.Seen) -> None:
    v = _monitor.view(waiting.prog, waiting.view.pid)
    assert (v.name, v.procs, v.goroutines, v.running, v.runnable) == ("waiting", 2, 5, 0, 0)
    assert v.waiting == {"chan receive": 4, "sleep": 1}
    assert sorted(m.kind for m in v.ms) == ["M0", "keeper", "worker", "worker"]


def test_a_watcher_takes_no_m_slot(waiting: _monitor.Seen) -> None:
    before = waiting.prog.slots()
    _core.goroutines(waiting.prog)
    waiting.prog.stats()
    assert waiting.prog.slots() == before


@pytest.mark.usefixtures("auto")
def test_ps_lists_the_program_and_stack_prints_its_goroutines(waiting: _monitor.Seen) -> None:
    pid = str(waiting.view.pid)
    assert [pid, "2", "5"] in [line.split()[:3] for line in mpgort("ps").stdout.splitlines()]
    for _ in range(20):  # who is at home shows its frames if its M answers within 0.1 s
        done = mpgort("stack", pid)
        assert done.returncode == 0, done.stderr
        if "pinned(...)" in done.stdout:
            break
    for text in (
        "goroutine 1 [sleep]:\nmain(...)\n",
        "goroutine 3 [chan receive]:\nstuck(...)\n",
        "goroutine 5 [chan receive, pinned: ",
        "pinned(...)\n",
    ):
        assert text in done.stdout, done.stdout
    assert done.stdout.count("stuck(...)") == 3


ENDED = """
    import mpgort, time

    async def main():
        return mpgort.spawn(mpgort.sleep, 100)

    kept = mpgort.run(main, procs=0)
    print("over", flush=True)
    time.sleep(100)
"""


def test_ps_does_not_list_a_program_that_has_ended_in_a_process_that_has_not(
    program: Programs,
) -> None:
    p = program.start(ENDED)
    assert p.line() == "over"
    assert p.pid in [running.pid for running in _monitor.programs()]  # its memory is still mapped
    assert str(p.pid) not in mpgort("ps").stdout
    p.end()
    p.popen.communicate()


SEVERAL = """
    import time
    import mpgort

    a, b = mpgort.Runtime(1), mpgort.Runtime(1)
    a.go(mpgort.sleep, 100)
    print("up", flush=True)
    time.sleep(100)
"""


def test_of_several_programs_in_one_process_each_has_a_label_that_chooses_it(
    program: Programs,
) -> None:
    p = program.start(SEVERAL)
    assert p.line() == "up"
    rows = [line.split() for line in mpgort("ps").stdout.splitlines()]
    goroutines = {row[0]: row[2] for row in rows if row[0].startswith(f"{p.pid}.")}
    assert sorted(goroutines.values()) == ["0", "1"]
    done = mpgort("stack", str(p.pid))
    assert done.returncode == 2
    assert all(f"{label} (prog0.py)" in done.stderr for label in goroutines)
    for label, n in goroutines.items():
        done = mpgort("stack", label)
        assert (done.returncode, done.stdout.count("goroutine ")) == (0, int(n)), done
    p.end()
    p.popen.communicate()


def test_top_shows_each_m_and_what_its_counters_grew_by(waiting: _monitor.Seen) -> None:
    done = mpgort("top", str(waiting.view.pid), "--count", "2", "--interval", "0.1")
    assert done.returncode == 0, done.stderr
    assert "5 goroutines, 0 running, 0 runnable" in done.stdout
    assert "waiting: 4 chan receive, 1 sleep" in done.stdout
    assert done.stdout.count("worker") == 2


def test_a_program_that_does_not_run_is_named_with_those_that_do(waiting: _monitor.Seen) -> None:
    for command in (["stack", "nosuch"], ["top", "nosuch"], ["trace", "nosuch", "-o", "x.json"]):
        done = mpgort(*command)
        assert done.returncode == 2
        assert "no program nosuch runs; there are " in done.stderr
        assert f"{waiting.view.pid} (waiting)" in done.stderr


def test_a_segment_that_others_may_write_to_is_refused_in_one_line(waiting: _monitor.Seen) -> None:
    pid, where = str(waiting.view.pid), f"/proc/{waiting.running.pid}/fd/{waiting.running.fd}"
    os.chmod(where, 0o644)
    for command in (["stack", pid], ["top", pid], ["trace", pid, "-o", os.devnull], ["ps"]):
        done = mpgort(*command)
        why = f"mpgort: program {pid}: its mode is 0644, not 0600: others may have written to it\n"
        assert why in done.stderr, done
        if command != ["ps"]:
            assert (done.returncode, done.stderr, done.stdout) == (2, why, ""), done
    os.chmod(where, 0o600)
    assert mpgort("stack", pid).returncode == 0


def test_a_trace_beside_another_is_refused_in_one_line(waiting: _monitor.Seen) -> None:
    prog = waiting.running.attach(watches=False)
    _trace.start(prog)
    done = mpgort("trace", str(waiting.view.pid), "-o", os.devnull)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done
    assert done.stderr.endswith(": tracing is on already: call trace_stop() first\n"), done
    _trace.stop(prog)
    prog.mexit()
    prog.detach()


def test_a_segment_that_is_none_is_refused(tmp_path: Path) -> None:
    for size in (0, 100, 1 << 16):
        path = tmp_path / str(size)
        path.write_bytes(os.urandom(size))
        path.chmod(0o600)
        fd = os.open(path, os.O_RDWR)
        with pytest.raises(BadSegment, match="too few for" if size < 4096 else "no segment of"):
            _core.Program.attach(fd, True)
        os.close(fd)


# ---- trace -----------------------------------------------------------------------------------

PINGPONG = """
    from mpgort import chan, go

    async def pong(there, back):
        async for ball in there:
            await back.send(ball)

    async def main(n):
        there, back = chan(), chan()
        go(pong, there, back)
        for i in range(int(n)):
            await there.send(i)
            await back.recv()
        there.close()
"""


@pytest.mark.parametrize("last", [True, False])
def test_trace_runs_a_file_and_writes_what_perfetto_reads(tmp_path: Path, last: bool) -> None:
    import textwrap

    path, out = tmp_path / "pingpong.py", tmp_path / "out.json"
    path.write_text(textwrap.dedent(PINGPONG))
    options = ["-o", str(out), "--procs", "1"]
    done = mpgort("trace", str(path), *([*options, "20"] if last else ["20", *options]))
    assert done.returncode == 0, done.stderr
    events = json.loads(out.read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert {e["args"]["goroutine"] for e in slices} == {1, 2}
    assert any("pong" in e["name"] for e in slices)
    assert all(e["dur"] >= 0 for e in slices)
    assert any(e["args"].get("reason") == "chan receive" for e in slices)
    starts = {e["id"] for e in events if e["ph"] == "s"}
    ends = [e["id"] for e in events if e["ph"] == "f"]
    assert ends and set(ends) <= starts and len(ends) == len(set(ends))


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("raise KeyboardInterrupt", -signal.SIGINT)]
)
def test_trace_writes_what_was_recorded_however_the_program_ends(
    tmp_path: Path, end: str, status: int
) -> None:
    path, out = tmp_path / "ends.py", tmp_path / "out.json"
    path.write_text(
        "import mpgort, sys\nasync def main():\n    for n in range(3):\n"
        "        await mpgort.spawn(abs, n)\n    " + end
    )
    done = mpgort("trace", str(path), "-o", str(out), "--procs", "1")
    assert done.returncode == status, done.stderr
    assert [e for e in json.loads(out.read_text())["traceEvents"] if e["ph"] == "X"]


def test_trace_says_that_it_cannot_write_before_it_begins(
    waiting: _monitor.Seen, tmp_path: Path
) -> None:
    path = tmp_path / "says.py"
    path.write_text("async def main():\n    print('ran')\n")
    for what in (str(path), str(waiting.view.pid)):
        done = mpgort("trace", what, "-o", str(tmp_path / "no" / "x.json"), "--seconds", "30")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("mpgort: [Errno 2] No such file or directory")
        assert done.stderr.count("\n") == 1


def traced(seen: _monitor.Seen) -> bool:
    """Now: what a watcher has of the header is of when it came."""
    prog = seen.running.attach()
    on = int(_segment.header(prog)[0]["trace_on"])
    prog.detach()
    return on == 2


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_trace_that_is_told_to_end_writes_its_file_and_leaves_no_tracing_on(
    waiting: _monitor.Seen, tmp_path: Path, sig: int
) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "mpgort", "trace", str(waiting.view.pid), "-o", str(out)]
    with subprocess.Popen([*command, "--seconds", "60"], stderr=subprocess.PIPE, text=True) as p:
        wait_until("it traces", lambda: traced(waiting), 30)
        p.send_signal(sig)
        assert p.wait(30) == 0, p.communicate()
    assert json.loads(out.read_text())["traceEvents"]
    assert not traced(waiting)


def test_trace_refuses_arguments_for_a_program_that_runs(waiting: _monitor.Seen) -> None:
    done = mpgort("trace", str(waiting.view.pid), "20", "-o", "x.json")
    assert done.returncode == 2
    assert done.stderr.startswith("mpgort: arguments are a FILE's")


def test_trace_records_a_running_program_and_gives_its_slot_back(waiting: _monitor.Seen) -> None:
    prog = waiting.running.attach(watches=False)
    _trace.start(prog)
    with pytest.raises(RuntimeError, match="tracing is on already"):
        _trace.start(prog)
    _trace.stop(prog)
    with pytest.raises(RuntimeError, match="tracing is not on"):
        _trace.stop(prog)
    prog.mexit()
    assert not [pid for _, kind, pid, _ in waiting.prog.slots() if pid == os.getpid()]
    prog.detach()
