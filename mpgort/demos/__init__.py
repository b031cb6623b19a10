"""The demos: one small program a file, each of which can be read in a minute.

A demo module has two functions that the command line calls, and is otherwise an ordinary program
written on the public names of mpgort:

  options(parser)   adds the demo's own options to an argparse parser
  demo(args)        runs it, prints what it found, returns the exit status

The first line of its docstring is what `mpgort demo --list` shows. `--procs` is common to all and
added by the command line."""

import argparse
import importlib
from typing import Protocol, cast

NAMES = ("index", "skynet", "sieve", "pingpong", "mandelbrot", "cluster")


class Demo(Protocol):
    """What a demo module offers; see above."""

    __doc__: str

    def options(self, parser: argparse.ArgumentParser) -> None: ...

    def demo(self, args: argparse.Namespace) -> int: ...


def at_least_1(text: str) -> int:
    """The value of an option that says how many."""
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return n


def load(name: str) -> Demo:
    """The module of one of NAMES."""
    return cast(Demo, importlib.import_module(f"{__name__}.{name}"))


def describe(name: str) -> str:
    """One sentence: the first line of the demo's docstring."""
    return load(name).__doc__.splitlines()[0]
