"""What an interpreter must be for mpgort to be imported. Imported before the compiled part.

A free-threaded build fails at the compiler, if one tries (cpython.h). But an interpreter may come
upon a tree that another has built, by PYTHONPATH or a shared folder, and would only say that there
is no module mpgort._core. Whether the frames of an interpreter that can be used are those that are
known is found out by the compiled part itself (`_core.frames_ok`)."""

from __future__ import annotations

import sys


def refusal() -> str | None:
    """Why this interpreter cannot be used, or None."""
    if "t" in sys.abiflags:
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"mpgort needs a CPython with the GIL, and {sys.executable} is a free-threaded build: "
            f"frames may change there while they are being moved. Use python{version} without "
            f"the t (goroutines run in parallel without it: on several processes)"
        )
    return None


if (_why := refusal()) is not None:
    raise ImportError(_why)
