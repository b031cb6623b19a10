"""The checker walks a program's segment when the last of its processes has gone: for ports that run
in pytest's process (`sound` in conftest.py), and for those that are programs of their own."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from mpgort import _core, _host, _segment


def looking(say: Callable[[list[str]], Any]) -> Callable[[_host.Host], None]:
    """Host.stop, which then gives `say` what is wrong. Where no goroutine is left and this process
    holds no handle, nothing at all may be: no block, waiter, lock or timer."""
    stop = _host.Host.stop

    def stop_and_look(host: _host.Host) -> None:
        first = not host.stopped and os.getpid() == host.pid
        stop(host)
        if first:
            for slot, kind, _, _ in host.prog.slots():
                if kind == _core.M_WORKER:  # did not leave in time, on a busy machine
                    host.prog.reap(slot, signal.SIGKILL)
            gc.collect()
            held = int(_segment.m_table(host.prog)["handles_n"].sum())
            statuses = _segment.g_table(host.prog)["status"][1:] & 0xFF
            alone = held == 0 and bool((statuses == _core.Gdead).all())
            say(host.prog.check(alone))

    return stop_and_look


def at_the_end() -> None:
    """In a program: stderr gets one line, "sound" or what is not."""
    _host.Host.stop = looking(lambda found: print(found or "sound", file=sys.stderr))  # type: ignore[method-assign]
