"""The demos, as a user runs them: they end with 0, and what they show is right."""

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mpgort.demos import NAMES, index, mandelbrot


def demo(*args: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mpgort", "demo", *args],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- index -----------------------------------------------------------------------------------


def test_the_index_by_goroutines_equals_that_of_one_process() -> None:
    found = json.loads(demo("index", "--stdlib-only", "--limit", "150", "--procs", "2", "--json"))
    assert found["equal"] is True
    assert found["files"] == 150 == sum(found["files_per_pid"].values())
    assert found["lines"] > 10_000
    assert "self" in found["most_used_names"]
    assert found["speedup"] == pytest.approx(
        found["one_process_seconds"] / found["parallel_seconds"]
    )


def test_both_ms_have_a_share_of_the_files() -> None:
    found = json.loads(demo("--stdlib-only", "--limit", "150", "--procs", "2", "--json"))
    assert len(found["files_per_pid"]) == 2, found["files_per_pid"]


def test_without_a_terminal_the_report_is_plain_lines() -> None:
    out = demo("--stdlib-only", "--limit", "20", "--procs", "2")
    assert re.search(r"^index: files: 20$", out, re.M), out
    assert re.search(r"^time: speed-up: \d+\.\d\d x$", out, re.M), out
    assert "time: the two indexes are: equal\n" in out
    assert "\x1b" not in out


def test_in_one_process_the_demo_works_too() -> None:
    found = json.loads(demo("--stdlib-only", "--limit", "20", "--procs", "0", "--json"))
    assert found["equal"] is True
    assert len(found["files_per_pid"]) == 1


def test_a_file_that_does_not_parse_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("import os, sys\nfrom os import path\nx = os.name\n")
    (tmp_path / "bad.py").write_text("def (:\n")
    (tmp_path / "null.py").write_bytes(b"x = 1\0\n")
    found = index.index_alone([str(tmp_path)], None, lambda: None)
    assert (found.files, found.lines) == (3, 5)
    assert sorted(Path(path).name for path in found.failed) == ["bad.py", "null.py"]
    assert found.failed[str(tmp_path / "bad.py")].startswith("SyntaxError: ")
    assert found.imports == {"os": 2, "sys": 1}
    assert found.names == {"x": 1, "os": 1, "name": 1}


def test_a_file_below_two_roots_is_indexed_once(tmp_path: Path) -> None:
    inner = tmp_path / "site-packages"
    inner.mkdir()
    (inner / "a.py").write_text("")
    (tmp_path / "b.py").write_text("")
    files = list(index.python_files([str(tmp_path), str(inner)], None))
    assert sorted(files) == sorted({str(inner / "a.py"), str(tmp_path / "b.py")})
    assert len(list(index.python_files([str(tmp_path), str(inner)], 1))) == 1


def test_an_index_differs_where_one_count_differs() -> None:
    one, other = index.Index(), index.Index()
    one.add(index.Summary("a.py", 1, names={"x": 1}))
    other.add(index.Summary("a.py", 2, names={"x": 1}))
    assert one == other  # who read it is no part of it
    other.add(index.Summary("b.py", 1, names={"x": 1}))
    assert one != other


# ---- the others ------------------------------------------------------------------------------


def test_skynet_is_exact() -> None:
    out = demo("skynet", "-n", "10000", "--procs", "2")
    assert "11,111 goroutines: sum 49995000 in " in out
    assert out.endswith("exact\n")


def test_the_sieve_prints_primes() -> None:
    assert demo("sieve", "-n", "10", "--procs", "2").startswith("2 3 5 7 11 13 17 19 23 29\n")


def test_pingpong_prints_a_ratio() -> None:
    out = demo("pingpong", "-n", "2000", "--procs", "2")
    assert re.search(r"^ratio +\d+\.\d$", out, re.M), out


def test_mandelbrot_writes_a_png_of_the_right_size(tmp_path: Path) -> None:
    args = ("mandelbrot", "--width", "60", "--height", "40", "--out", "m.png", "--procs", "2")
    assert "the two pictures are identical" in demo(*args, cwd=tmp_path)
    width, height, rows = read_png((tmp_path / "m.png").read_bytes())
    assert (width, height) == (60, 40)
    assert rows == [mandelbrot.row(y, 60, 40) for y in range(40)]


def read_png(data: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of a PNG with a palette and no filters; checks every chunk's sum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (n,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + n]
        assert struct.unpack(">I", data[at + 8 + n : at + 12 + n])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + n
    width, height, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colours, len(chunks[b"PLTE"])) == (8, 3, 3 * 256)
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (width + 1)
    return width, height, [raw[y * (width + 1) + 1 : (y + 1) * (width + 1)] for y in range(height)]


def test_every_demo_is_listed_with_a_sentence() -> None:
    assert [line.split()[0] for line in demo("--list").splitlines()] == list(NAMES)
