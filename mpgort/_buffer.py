"""Memoryviews and NumPy arrays in a pickle.

A memoryview crosses as the buffer that it is of, which arrives read-only, and how it looks at it.
A plain array without gaps has a tag of its own (_core/codec_array.c), and inside of what is pickled
NumPy itself hands it over as a buffer of protocol 5; here is the rest. An array with gaps crosses
as the view that it is, if its memory is shared, else as a copy without gaps. In a move nobody may
be able to tell: an array that has its memory has it afterwards, a view stays a view of the same
base, and what shares its memory with somebody else is Refused (its goroutine stays).

Nothing here imports NumPy before an array has come.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable
from typing import Any

from ._errors import OverBudget, Refused

SHARED = ("SharedBuffer", "FrozenBuffer")  # of _core/buffer.c, which imports this
BUFFER_MIN = 65536  # CORE_BUFFER_MIN
_CASTS = "cbBhHiIlLqQnNfdP?"


def why_not_memoryview(view: memoryview, moving: bool) -> str | None:
    try:
        form = view.format
    except ValueError as e:
        return f"a memoryview never crosses: {e}"
    if moving and (type(view.obj).__name__ not in SHARED or not view.c_contiguous):
        return "a memoryview (of memory that is not shared, or with gaps) does not move"
    if form not in _CASTS:
        return f"a memoryview of format {form!r} never crosses: send the array"
    return None


def viewed(buffer: Any, form: Any, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(buffer)
    if isinstance(buffer, bytearray):
        view = view.toreadonly()  # small, so it came as a copy
    if 0 in shape or (form == view.format and shape == view.shape):
        return view.cast("B").cast(form)
    return view.cast("B").cast(form, shape)


def reduced(a: Any, ndarray: Any, moving: bool, room: int) -> Any:
    """How a NumPy array is pickled, as reducer_override says it; `room`: how many bytes more the
    pickle may take, or it is OverBudget."""
    root = _root(a, ndarray)
    if type(root).__name__ in SHARED:
        return _strided_view(a, root) or NotImplemented
    if not moving:
        if a.nbytes < BUFFER_MIN or a.dtype.hasobject:
            return NotImplemented
        if type(a) in _bare():
            return _as(type(a), _bytes_view(a.view(ndarray)))
        if type(a) is not ndarray:
            return NotImplemented
        if a.dtype.kind in "mMV":
            return _bytes_view(a)
        # One without gaps NumPy hands over as a buffer.
        return NotImplemented if a.flags.forc else a.copy("C").__reduce_ex__(5)
    copied = root is a or type(a) is not ndarray
    del root  # or it would be counted: _alone()
    if copied and a.nbytes > room:
        raise OverBudget  # at once
    return _moved_array(a, ndarray)


def _root(a: Any, ndarray: Any) -> Any:
    """What owns the memory of a NumPy array: itself, or the last of what it is a view of. (NumPy's
    stride_tricks put a DummyArray between.)"""
    while isinstance(a, (ndarray, memoryview)) or type(a).__name__ == "DummyArray":
        below = a.obj if isinstance(a, memoryview) else a.base
        if below is None:
            return a
        a = below
    return a


def _moved_array(a: Any, ndarray: Any) -> Any:
    """A NumPy array in a move. One that has its memory has it afterwards; a view stays a view of
    the same base, which is pickled once for all, and counted as any object that is referred to."""
    base = a.base
    if base is None:
        if a.flags.writeable:
            return a.__reduce__()
        return _readonly, a.__reduce__()[:3]
    if isinstance(base, memoryview):
        base = base.obj
    plain = type(a) is ndarray and not a.dtype.hasobject
    if plain and isinstance(base, (ndarray, bytearray)):
        offset = _address(a) - _address(base) if a.size else 0
        return _view, (base, offset, a.dtype, a.shape, a.strides, a.flags.writeable)
    immutable = isinstance(base, bytes)
    del base
    if not immutable and not _alone(a):
        raise Refused(
            f"a {type(a).__qualname__} that shares its memory with another object does not move"
        )
    return NotImplemented  # a copy: nobody can tell


def _alone(a: Any) -> bool:
    """Whether nothing else refers to what this array is a view of."""
    while a is not None:
        a = a.obj if isinstance(a, memoryview) else getattr(a, "base", None)
        if a is not None and sys.getrefcount(a) > 3:  # its holder, this variable, the argument
            return False
    return True


def _address(o: Any) -> int:
    import numpy as np

    a = o if isinstance(o, np.ndarray) else np.frombuffer(o, np.uint8)
    return int(a.__array_interface__["data"][0])


def _readonly(make: Callable[..., Any], args: Any, state: Any) -> Any:
    a = make(*args)
    a.__setstate__(state)
    a.flags.writeable = False
    return a


def _view(base: Any, offset: int, dtype: Any, shape: Any, strides: Any, writeable: bool) -> Any:
    if not isinstance(base, bytearray) and not base.flags.c_contiguous:
        base = base.T  # in Fortran's order: only so it gives its memory away
    a = strided(base, offset, dtype, shape, strides)
    if not writeable:
        a.flags.writeable = False
    return a


def _strided_view(a: Any, root: Any) -> tuple[Any, ...] | None:
    """How a NumPy array that lies in shared memory crosses as what it is: a view. None: NumPy hands
    it over as a buffer by itself (one without gaps, that is not of dates), or it is of a class that
    has its own way."""
    import numpy as np

    bare = type(a) in _bare()
    if a.dtype.hasobject or not (bare or type(a) is np.ndarray):
        return None
    if a.flags.forc and a.dtype.kind not in "mMV" and not bare:
        return None
    root = memoryview(root)
    whole = np.frombuffer(root, np.uint8)
    offset = a.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    if not a.flags.writeable:
        root = root.toreadonly()
    made = strided, (pickle.PickleBuffer(root), offset, a.dtype, a.shape, a.strides)
    return _as(type(a), made) if bare else made


def _bytes_view(a: Any) -> tuple[Any, ...]:
    """As a view of bytes: dates, alone or in records, have no format that a buffer could tell."""
    a = a if a.flags.forc else a.copy("C")
    flat = (a if a.flags.c_contiguous else a.T).reshape(-1).view("u1")
    return strided, (pickle.PickleBuffer(flat), 0, a.dtype, a.shape, a.strides)


def _bare() -> tuple[type, ...]:
    """NumPy's own kinds of array that have nothing beside what every array has."""
    import numpy as np

    return np.recarray, np.matrix


def _as(kind: type, made: tuple[Any, ...]) -> tuple[Any, ...]:
    return made[0], (*made[1], kind)


def column(a: Any) -> tuple[Any, ...] | None:
    """How a column of pandas that Arrow holds is pickled: as pandas does, but for the copy that it
    makes of its one chunk (`combine_chunks`), which would be written anew each time."""
    chunks = vars(a).get("_pa_array")
    if getattr(chunks, "num_chunks", 0) != 1:
        return None
    state = {**vars(a), "_pa_array": chunks.chunk(0)}
    if "_cache" in state:
        state["_cache"] = {}
    return copyreg.__newobj__, (type(a),), state  # type: ignore[attr-defined]


def strided(
    buffer: Any, offset: int, dtype: Any, shape: Any, strides: Any, kind: Any = None
) -> Any:
    import numpy as np

    a = np.ndarray(shape, dtype, buffer, offset, strides)
    return a if kind is None else a.view(kind)
