"""The command `mpgort`: what it says, and with which status it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpgort import _doctor, cli, demos


def mpgort(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mpgort", *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
    )


def program(folder: Path, source: str) -> str:
    path = folder / "program.py"
    path.write_text(source)
    return str(path)


# ---- run -------------------------------------------------------------------------------------


def test_run_calls_main_with_the_arguments_as_text(tmp_path: Path) -> None:
    path = program(tmp_path, "async def main(*args):\n    print(args)\n")
    done = mpgort("run", path, "1", "--two", "x y")
    assert (done.stdout, done.returncode) == ("('1', '--two', 'x y')\n", 0), done.stderr


def test_run_finds_the_functions_of_the_file_on_other_processes(tmp_path: Path) -> None:
    source = """
import os
from dataclasses import dataclass
from mpgort import chan, go, spawn

FACTOR = 3

@dataclass
class Item:
    n: int

async def worker(items, out):
    async for item in items:
        await out.send((Item(item.n * FACTOR), os.getpid()))

async def main(upto):
    items, out = chan(), chan()
    go(worker, items, out)
    for n in range(int(upto)):
        await items.send(Item(n))
        item, pid = await out.recv()
        assert item == Item(n * FACTOR) and pid != os.getpid(), (item, pid)
    print("all came back")
"""
    done = mpgort("run", "--procs", "2", program(tmp_path, source), "20")
    assert (done.stdout, done.returncode) == ("all came back\n", 0), done.stderr


def test_run_leaves_the_main_block_out(tmp_path: Path) -> None:
    source = """
import sys, mpgort

def main(*args):
    print("main", args, sys.argv[1:])

if __name__ == "__main__":
    print("main block")
"""
    done = mpgort("run", program(tmp_path, source), "a")
    assert (done.stdout, done.returncode) == ("main ('a',) ['a']\n", 0), done.stderr


def test_run_imports_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("async def double(n):\n    return 2 * n\n")
    source = """
from mpgort import spawn
from beside import double

async def main():
    print(await spawn(double, 21))
"""
    done = mpgort("run", program(tmp_path, source))
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


def test_run_shows_a_traceback_of_the_program_alone_and_ends_with_1(tmp_path: Path) -> None:
    source = """
async def inner():
    raise LookupError("lost")

async def main():
    await inner()
"""
    path = program(tmp_path, source)
    done = mpgort("run", path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("LookupError: lost\n")
    assert f'File "{path}", line 6, in main' in done.stderr
    assert f'File "{path}", line 3, in inner' in done.stderr
    assert "cli.py" not in done.stderr


def test_run_shows_a_panic_with_its_goroutine_and_ends_with_2(tmp_path: Path) -> None:
    source = """
from mpgort import chan, go

async def bad():
    raise LookupError("lost")

async def main():
    go(bad)
    await chan().recv()
"""
    done = mpgort("run", program(tmp_path, source))
    assert done.returncode == 2
    assert done.stderr.startswith("panic: LookupError: lost\n\ngoroutine 2 [running]:\n")
    assert "LookupError: lost" in done.stderr
    assert "in bad" in done.stderr


def test_run_ends_by_sigint_with_a_traceback_of_the_program_alone(tmp_path: Path) -> None:
    done = mpgort("run", program(tmp_path, "async def main():\n    raise KeyboardInterrupt\n"))
    assert done.returncode == -signal.SIGINT
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert "in main" in done.stderr
    assert "cli.py" not in done.stderr


def test_run_calls_the_excepthook_that_the_program_has_set(tmp_path: Path) -> None:
    source = """
import sys
sys.excepthook = lambda kind, value, tb: print("hook:", kind.__name__, value)

async def main():
    raise LookupError("lost")
"""
    done = mpgort("run", program(tmp_path, source))
    assert (done.stdout, done.stderr, done.returncode) == ("hook: LookupError lost\n", "", 1)


def test_run_passes_the_status_of_sys_exit_on(tmp_path: Path) -> None:
    source = "import sys\nasync def main():\n    sys.exit(7)\n"
    assert mpgort("run", program(tmp_path, source)).returncode == 7


def test_run_reports_a_syntax_error_as_python_does(tmp_path: Path) -> None:
    done = mpgort("run", program(tmp_path, "async def main(:\n"))
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
    assert "cli.py" not in done.stderr


@pytest.mark.parametrize(
    ("name", "source", "text"),
    [
        ("nowhere.py", None, "no such file: nowhere.py"),
        (".", None, ". is a directory"),
        ("empty.py", "x = 1\n", "empty.py has no function main"),
        ("empty.py", "main = 1\n", "empty.py has no function main"),
    ],
)
def test_run_says_in_one_line_what_is_wrong_with_the_file(
    tmp_path: Path, name: str, source: str | None, text: str
) -> None:
    if source is not None:
        (tmp_path / name).write_text(source)
    done = mpgort("run", name, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("mpgort: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


# ---- demo, bench, version --------------------------------------------------------------------


def test_demo_list_names_every_demo_with_one_line() -> None:
    done = mpgort("demo", "--list")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(demos.NAMES)
    assert all(len(line.split()) > 5 for line in lines)


def test_procs_may_stand_on_either_side_of_the_demos_name() -> None:
    parser = cli.make_parser()
    for argv in (["demo", "--procs", "3", "sieve"], ["demo", "sieve", "--procs", "3"]):
        args = parser.parse_args(argv)
        assert (args.name, args.procs) == ("sieve", 3)
    args = parser.parse_args(["demo"])
    assert (args.name, args.procs) == ("index", None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["sieve", "-n", "0"], "-n: 0: must be 1 or more"),
        (["pingpong", "-n", "-5"], "-n: -5: must be 1 or more"),
        (["mandelbrot", "--width", "0"], "--width: 0: must be 1 or more"),
        (["index", "--limit", "-1"], "--limit: -1: must be 1 or more"),
    ],
)
def test_a_demo_refuses_to_do_nothing(
    capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["demo", *options])
    assert e.value.code == 2
    assert text in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_error() -> None:
    r, w = os.pipe()
    os.close(r)
    with os.fdopen(w) as closed:
        done = subprocess.run(
            [sys.executable, "-m", "mpgort", "doctor"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", [["ps"], ["demo", "--list"]])
def test_what_cannot_be_written_is_said_in_one_line(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mpgort", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (2, "mpgort: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    "argv",
    [["fly"], [], ["demo", "fly"], ["demo", "skynet", "-n", "5"], ["run", "--procs", "-1", "x.py"]],
)
def test_a_wrong_command_line_ends_with_2_and_the_usage(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    assert e.value.code == 2
    assert "usage: mpgort" in capsys.readouterr().err


def test_bench_hands_its_options_to_the_figures() -> None:
    done = mpgort("bench", "--help")
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout


def test_version_says_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["--version"])
    assert e.value.code == 0
    assert capsys.readouterr().out == f"mpgort {cli.version()}\n"


# ---- doctor ----------------------------------------------------------------------------------


def test_doctor_finds_this_machine_able() -> None:
    done = mpgort("doctor")
    assert done.returncode == 0, done.stdout
    for what in ("python", "mpgort._core", "/dev/shm", "pidfd", "processors", "open files"):
        assert what in done.stdout
    assert "mpgort can run here" in done.stdout


def test_doctor_says_how_to_enlarge_a_small_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = _doctor.shutil.disk_usage("/")
    monkeypatch.setattr(_doctor.shutil, "disk_usage", lambda _: type(usage)(64 << 20, 0, 64 << 20))
    f = _doctor.check_shm()
    assert (f.level, f.found) == ("warn", "64 MiB free of 64 MiB")
    assert "--shm-size" in f.change


def test_doctor_fails_without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_doctor.os, "pidfd_open", refuse)
    assert _doctor.check_pidfd().level == "fail"
    monkeypatch.setattr(cli._doctor, "CHECKS", (_doctor.check_pidfd,))
    assert cli.main(["doctor"]) == 1


@pytest.mark.parametrize(
    ("quota", "level", "found"),
    [(None, "ok", "4 of "), (3, "ok", "3 by cgroup quota"), (1, "warn", "1 by cgroup quota")],
)
def test_doctor_counts_the_processors_that_affinity_and_quota_leave(
    monkeypatch: pytest.MonkeyPatch, quota: int | None, level: str, found: str
) -> None:
    monkeypatch.setattr(_doctor.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(_doctor._options, "cgroup_cpus", lambda: quota)
    f = _doctor.check_cpus()
    assert f.level == level
    assert found in f.found
