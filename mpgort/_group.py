"""The end of a Group's block: asyncio.TaskGroup.__aexit__, line by line, on the shared group.

`Group` itself, its children and their failures live in shm/group.c and _core/group.c. This runs in
the goroutine that entered the block, which may move between any two awaits.

Whose cancel is it? The group cancels its parent when a child fails while the body runs; that
Cancelled ends here. One that somebody else has asked for is raised on, unless there are errors,
which come first; then it is due again at the parent's next park."""

from __future__ import annotations

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
