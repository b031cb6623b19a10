"""to_thread; and the end of a Group's block: asyncio.TaskGroup.__aexit__, line by line.

`Group` itself, its children and their failures live in shm/group.c and _core/group.c. This runs in
the goroutine that entered the block, which may move between any two awaits.

Whose cancel is it? The group cancels its parent when a child fails while the body runs; that
Cancelled ends here. One that somebody else has asked for is raised on, unless there are errors,
which come first; then it is due again at the parent's next park."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any

from mpgort import _core
from mpgort._errors import Cancelled

# Not gathered into a group, as with asyncio: they end more than the block.
_BASE = (KeyboardInterrupt, SystemExit, _core.Goexit)


async def leave(group: _core.Group, exc: BaseException | None) -> None:
    """Waits for all children. Raises as asyncio.TaskGroup does; `exc` is what left the body."""
    outer = exc if isinstance(exc, Cancelled) else None
    if group._exiting():
        outer = None
    if exc is not None:
        group._abort()
    while True:
        try:
            await group._wait()
            break
        except Cancelled as e:
            if group._abort():
                outer = e
    errors: list[BaseException] = group._finish()
    for end in [exc, *errors]:
        if isinstance(end, _BASE):
            raise end
    if outer is not None and not errors:
        raise outer
    if exc is not None and not isinstance(exc, Cancelled):
        errors.append(exc)
    if errors:
        raise BaseExceptionGroup("unhandled errors in a Group", errors)


# ---- to_thread -------------------------------------------------------------------------------

Done = Callable[[Any, BaseException | None], None]
Job = tuple[contextvars.Context, Callable[..., Any], tuple[Any, ...], dict[str, Any], Done]

# Threads of this process without a job, each waiting on its own queue. No limit, as in Go: a call
# that waits for another one's effect must get a thread. Daemons: they never keep a process alive.
# In M0 they end with the program (`end_idle`): where a second thread is, the next one would not be
# started by fork.
_idle: list[tuple[SimpleQueue[Job | None], threading.Thread]] = []
_IDLE_MOST = 8


def _work(queue: SimpleQueue[Job | None]) -> None:
    stays = True
    while stays and (job := queue.get()) is not None:
        context, fn, args, kwargs, done = job
        try:
            value, exc = context.run(fn, *args, **kwargs), None
        except BaseException as e:
            value, exc = None, e
        stays = len(_idle) < _IDLE_MOST
        if stays:  # before it is known that fn has ended: who ends the program then finds it
            _idle.append((queue, threading.current_thread()))
        done(value, exc)
        # Nothing of it is kept alive by waiting.
        del job, context, fn, args, kwargs, done, value, exc


def _hand_over(job: Job) -> None:
    try:
        queue, _ = _idle.pop()
    except IndexError:
        queue = SimpleQueue()
        threading.Thread(target=_work, args=(queue,), name="mpgort to_thread", daemon=True).start()
    queue.put(job)


def end_idle() -> None:
    """Ends the threads that have nothing to do."""
    while _idle:
        queue, thread = _idle.pop()
        queue.put(None)
        thread.join()


def to_thread(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
    """Awaitable: runs fn(*args, **kwargs) in a thread of this process, for a call that blocks.

    The P is free meanwhile. Nothing is copied: arguments and result are the very objects, and the
    goroutine stays on its process until fn has returned; fn is no goroutine. A cancel ends the
    await, not the call. Source: asyncio.to_thread."""
    if not callable(fn):
        raise TypeError(f"to_thread: a function is needed, not {fn!r}")
    context = contextvars.copy_context()
    return _core.thread_wait(lambda done: _hand_over((context, fn, args, kwargs, done)))


def _after_fork() -> None:
    _idle.clear()


os.register_at_fork(after_in_child=_after_fork)
