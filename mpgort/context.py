"""Go's package context: deadlines, cancellation and values that cross with a call.

A context is a handle on shared state: it can be an argument, a message or a local of a goroutine,
and is the same context in every process. It ends when it is cancelled, when its deadline passes, or
when its parent ends; what is made from it ends with it, before it. Nothing need be cancelled for
the sake of memory: a context that nobody can reach is gone.

    ctx, cancel = context.with_timeout(context.background(), 2.0)
    i, v = await select(jobs.recv, ctx.done().recv)
    if ctx.err():
        raise ctx.err()

The tree is kept in C (shm/context.c); this module names it."""

from mpgort._core import CancelFunc as CancelFunc
from mpgort._core import Context as Context
from mpgort._core import background as _background
from mpgort._core import cause as cause
from mpgort._core import with_cancel as with_cancel
from mpgort._core import with_deadline as with_deadline
from mpgort._core import with_timeout as with_timeout
from mpgort._core import with_value as with_value
from mpgort._errors import Canceled as Canceled
from mpgort._errors import ContextError as ContextError
from mpgort._errors import DeadlineExceeded as DeadlineExceeded

CANCELED = Canceled()  # to compare with; raise ctx.err() or a new one
DEADLINE_EXCEEDED = DeadlineExceeded()


def background() -> Context:
    """The root: never cancelled, no deadline, no values. Source: Go context.Background."""
    return _background
