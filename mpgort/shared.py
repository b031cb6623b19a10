"""Arrays and dicts that live in shared memory from the start: writable by all, passed by reference.

`zeros((1000, 1000))` in a goroutine gives a NumPy array; sent over a channel, given as an argument
or held as a local of a goroutine that moves, it is the same memory everywhere, and so is each
slice and view of it. The memory is free with the last of them, in whatever process, and the system
has it back within about a second.

`dict()` is a map from str or bytes to whatever can be sent, one for all who have it. Each of its
calls is one step, whoever else is at it; values go in and come out as messages do, by value.

Who writes where in an array is the program's business, as with any shared memory: a channel, a
WaitGroup or a Mutex orders what one goroutine writes before what another reads.

Outside a goroutine (`runtime=`): the Runtime, Executor or Pool whose goroutines are to use it; it
may be left out where the process has only one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mpgort import _core, _host
from mpgort._core import Dict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike, NDArray

Order = Literal["C", "F"]

__all__ = ["Dict", "array", "dict", "empty", "zeros"]


def empty(
    shape: int | tuple[int, ...],
    dtype: DTypeLike = float,
    order: Order = "C",
    *,
    runtime: Any = None,
) -> NDArray[Any]:
    """An array of this shape in shared memory; its contents are whatever was there.

    Raises TypeError for a dtype with Python objects, OutOfSharedMemory, RuntimeError where there is
    no runtime, or more than one."""
    return _make(shape, dtype, order, runtime, zero=False)


def zeros(
    shape: int | tuple[int, ...],
    dtype: DTypeLike = float,
    order: Order = "C",
    *,
    runtime: Any = None,
) -> NDArray[Any]:
    """An array of zeros in shared memory; otherwise as empty()."""
    return _make(shape, dtype, order, runtime, zero=True)


def array(
    values: ArrayLike, dtype: DTypeLike | None = None, *, runtime: Any = None
) -> NDArray[Any]:
    """A copy of values, as numpy.array makes one, in shared memory; otherwise as empty()."""
    import numpy as np

    a = np.asarray(values, dtype)
    order: Order = "F" if a.flags.f_contiguous and not a.flags.c_contiguous else "C"
    made = _make(a.shape, a.dtype, order, runtime, zero=False)
    made[...] = a
    return made


def dict(
    items: Mapping[str, Any] | Mapping[bytes, Any] | Iterable[tuple[str | bytes, Any]] = (),
    /,
    *,
    runtime: Any = None,
) -> Dict:
    """A new dict in shared memory, with these items: it is empty if there are none.

    Keys are str or bytes: TypeError for another. Otherwise as empty()."""
    made = _core.dict_in(_program(runtime))
    for key, value in items.items() if isinstance(items, Mapping) else items:
        made[key] = value
    return made


def _make(shape: Any, dtype: DTypeLike, order: Order, runtime: Any, zero: bool) -> NDArray[Any]:
    import numpy as np

    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"dtype {kind}: Python objects cannot live in shared memory")
    dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if any(n < 0 for n in dims):
        raise ValueError(f"shape {shape}: negative dimensions are not allowed")
    nbytes = math.prod(dims) * kind.itemsize
    buffer = memoryview(_core.shared_buffer(_program(runtime), nbytes, zero))
    return np.ndarray(dims, kind, buffer, order=order)


def _program(runtime: Any) -> _core.Program:
    if runtime is not None:
        prog = getattr(getattr(runtime, "runtime", runtime), "_prog", None)
        if prog is None and hasattr(runtime, "_start"):  # an Executor
            prog = runtime._start().runtime._prog
        elif prog is None and hasattr(runtime, "_engine"):  # a Pool
            prog = runtime._engine.runtime._prog
        if not isinstance(prog, _core.Program):
            raise TypeError(f"runtime must be a Runtime, an Executor or a Pool, not {runtime!r}")
        return prog
    current = _core.current()
    if current is not None:
        return current
    hosts = [h for h in _host.hosts if not h.stopped]
    if len(hosts) == 1:
        return hosts[0].prog
    what = "no runtime is running here" if not hosts else f"{len(hosts)} runtimes are running here"
    raise RuntimeError(f"mpgort.shared: {what}: say which with runtime=")
