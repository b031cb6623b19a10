"""Index the source of this Python installation: a goroutine per file, on all processors.

    walk ──paths──▶ dispatch ──go──▶ index_file × thousands ──results──▶ main

One goroutine walks the directories and sends the paths over a channel. Another starts a goroutine
for each path, and no more than ALIVE of them at once: `places` is a channel used as a counting
semaphore, as in Go: to start a file is to send into it, to finish one is to receive from it. When
the paths have ended, the dispatcher fills the channel itself; that succeeds when the last file has
given its place back, so every result has been sent and the results can be closed.

A file is read, parsed by `ast` and counted by `summarize`, a plain function that knows nothing of
goroutines. So the same work can be done in one process, in the same run: the two times are set side
by side, and the two indexes are compared, entry for entry."""

import argparse
import ast
import contextlib
import json
import os
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import mpgort
from mpgort import Chan, chan, go, spawn
from mpgort.demos import at_least_1

ALIVE = 64  # file goroutines at once: enough to keep every M busy, few enough to stay small


# ---- the work, without goroutines ------------------------------------------------------------


@dataclass
class Summary:
    """What one file holds. It is a message: it crosses from the M that made it to main."""

    path: str
    pid: int
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    error: str = ""


@dataclass
class Index:
    """All summaries together. Equality is the equality of every count and every failure."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, s: Summary) -> None:
        self.files += 1
        self.lines += s.lines
        self.functions += s.functions
        self.classes += s.classes
        add_counts(self.imports, s.imports)
        add_counts(self.names, s.names)
        if s.error:
            self.failed[s.path] = s.error


def add_counts(total: Counter[str], counts: dict[str, int]) -> None:
    """total.update(counts), at a third of its cost: main adds up the names of every file."""
    get = total.get
    for name, n in counts.items():
        total[name] = get(name, 0) + n


def python_files(roots: list[str], limit: int | None) -> Iterator[str]:
    """Every .py file below `roots`, in a fixed order, each once (roots may overlap)."""
    seen: set[str] = set()
    for root in roots:
        for folder, subfolders, files in os.walk(root):
            subfolders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                if name.endswith(".py") and path not in seen:
                    if limit is not None and len(seen) >= limit:
                        return
                    seen.add(path)
                    yield path


def summarize(path: str) -> Summary:
    """Reads, parses and counts one file; a file that does not parse is a Summary with an error."""
    s = Summary(path, os.getpid())
    try:
        source = Path(path).read_bytes()
        s.lines = source.count(b"\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(source, path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as e:
        s.error = f"{type(e).__name__}: {e}"
        return s
    imports, names = s.imports, s.names
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names[node.id] = names.get(node.id, 0) + 1
        elif isinstance(node, ast.Attribute):
            names[node.attr] = names.get(node.attr, 0) + 1
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            s.functions += 1
        elif isinstance(node, ast.ClassDef):
            s.classes += 1
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                imports[top] = imports.get(top, 0) + 1
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            top = node.module.partition(".")[0]
            imports[top] = imports.get(top, 0) + 1
    return s


def index_alone(roots: list[str], limit: int | None, step: Callable[[], None]) -> Index:
    """The same index in this process, by plain calls: the reference for result and time."""
    index = Index()
    for path in python_files(roots, limit):
        index.add(summarize(path))
        step()
    return index


def warm(roots: list[str], limit: int | None) -> int:
    """Reads every file once, before any clock starts: neither of the two times pays for the disk.
    Returns how many there are."""
    total = 0
    for path in python_files(roots, limit):
        total += 1
        with contextlib.suppress(OSError):
            Path(path).read_bytes()
    return total


# ---- the goroutines --------------------------------------------------------------------------


async def walk(roots: list[str], limit: int | None, paths: Chan[str]) -> int:
    """Sends every path, closes the channel; its value is how many there were."""
    sent = 0
    for path in python_files(roots, limit):
        await paths.send(path)
        sent += 1
    paths.close()
    return sent


async def dispatch(paths: Chan[str], results: Chan[Summary]) -> None:
    """Starts one goroutine for each path, ALIVE at once; closes `results` after the last."""
    places = chan(ALIVE)
    async for path in paths:
        await places.send(None)
        go(index_file, path, places, results)
    for _ in range(ALIVE):
        await places.send(None)
    results.close()


async def index_file(path: str, places: Chan[None], results: Chan[Summary]) -> None:
    await results.send(summarize(path))
    await places.recv()


async def main(
    roots: list[str], limit: int | None, step: Callable[[int | None], None]
) -> tuple[Index, Counter[int], float]:
    """Main reduces: (the index, files per process id, seconds from the first path to the last)."""
    paths, results = chan(ALIVE), chan(ALIVE)
    index, share = Index(), Counter[int]()
    started = time.perf_counter()
    walker = spawn(walk, roots, limit, paths)
    go(dispatch, paths, results)
    total: int | None = None
    async for s in results:
        index.add(s)
        share[s.pid] += 1
        if total is None and walker.done():
            total = await walker
        step(total)
    return index, share, time.perf_counter() - started


# ---- what is shown ---------------------------------------------------------------------------


class Bar:
    """A progress bar on a terminal; elsewhere (a pipe, a log) one plain line when it is done.

    rich would redraw from a thread of its own, and a process with a second thread cannot be forked
    safely; so whoever steps draws, ten times a second at most."""

    def __init__(self, console: Console, title: str, total: int | None = None) -> None:
        self.console, self.title, self.total, self.done = console, title, total, 0
        self.drawn = 0.0
        self.progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=total)

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.update(self.task, completed=self.done, total=self.done)
        self.progress.stop()
        if not self.console.is_terminal:
            self.console.print(f"{self.title}: {self.done:,} files")

    def step(self, total: int | None = None) -> None:
        """One more file is done, of `total` if that is known by now."""
        self.done += 1
        now = time.monotonic()
        if now - self.drawn > 0.1:
            self.drawn = now
            self.progress.update(
                self.task, completed=self.done, total=total or self.total, refresh=True
            )


def top(counts: Counter[str], n: int) -> list[tuple[str, int]]:
    """The n largest; equal counts in the order of the names, so two equal indexes print alike."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]


def report(
    console: Console, index: Index, share: Counter[int], parallel: float, alone: float, equal: bool
) -> None:
    def rows(title: str, pairs: list[tuple[str, str]]) -> None:
        if not console.is_terminal:
            for name, value in pairs:
                console.print(f"{title}: {name}: {value}", soft_wrap=True)
            return
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in pairs:
            table.add_row(name, value)
        console.print(table)

    rows(
        "index",
        [
            ("files", f"{index.files:,}"),
            ("lines", f"{index.lines:,}"),
            ("functions and classes", f"{index.functions:,} and {index.classes:,}"),
            ("most imported", ", ".join(f"{k} {v:,}" for k, v in top(index.imports, 8))),
            ("most used names", ", ".join(f"{k} {v:,}" for k, v in top(index.names, 8))),
            ("do not parse", f"{len(index.failed):,}"),
            *((f"  {path}", error) for path, error in sorted(index.failed.items())),
        ],
    )
    rows(
        "share",
        [
            (f"M with pid {pid}", f"{n:,} files ({n / index.files:.0%})")
            for pid, n in sorted(share.items())
        ],
    )
    rows(
        "time",
        [
            (f"goroutines on {len(share)} Ms", f"{parallel:.2f} s"),
            ("one process, plain calls", f"{alone:.2f} s"),
            ("speed-up", f"{alone / parallel:.2f} x"),
            ("the two indexes are", "equal" if equal else "DIFFERENT"),
        ],
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=at_least_1, metavar="N", help="stop after N files")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument(
        "--stdlib-only", action="store_true", help="leave the installed packages out"
    )


def demo(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json, highlight=False)
    folders = sysconfig.get_paths()
    # Under a virtual environment the packages lie elsewhere than the standard library does.
    roots = [folders["stdlib"]]
    if not args.stdlib_only:
        roots += [folders["purelib"], folders["platlib"]]
    console.print(
        f"Python {sys.version.split()[0]}: {' '.join(dict.fromkeys(roots))}", soft_wrap=True
    )
    total = warm(roots, args.limit)

    with Bar(console, "goroutines") as bar:
        index, share, parallel = mpgort.run(main, roots, args.limit, bar.step, procs=args.procs)
    with Bar(console, "one process", total) as bar:
        started = time.perf_counter()
        reference = index_alone(roots, args.limit, bar.step)
        alone = time.perf_counter() - started
    equal = index == reference

    if args.json:
        figures = {
            "files": index.files,
            "lines": index.lines,
            "functions": index.functions,
            "classes": index.classes,
            "most_imported": dict(top(index.imports, 20)),
            "most_used_names": dict(top(index.names, 20)),
            "failed": index.failed,
            "files_per_pid": dict(share),
            "parallel_seconds": parallel,
            "one_process_seconds": alone,
            "speedup": alone / parallel,
            "equal": equal,
        }
        json.dump(figures, sys.stdout, indent=2)
        print()
    elif index.files:
        report(console, index, share, parallel, alone, equal)
    return 0 if equal else 1
