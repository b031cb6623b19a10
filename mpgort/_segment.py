"""A program's shared-memory object: its name, its room, and views of its tables.

The object has a name for some microseconds only: M0 makes it (O_EXCL, mode 0600), and unlinks it
before anything else happens. From then on it is a descriptor that every process of the program
inherits or is handed, and the kernel frees it with the last of them: no order of deaths can leave
it behind. A monitor finds it as /proc/PID/fd/N -> /dev/shm/mpgort-USER-PID-RANDOM (deleted).

What can be left is a name whose maker was killed within those microseconds. The name says the
maker's pid, so the next program of the same user removes it (`sweep`): the file is its own user's
and the pid names no process. Rejected: memfd_create, which has no name at all, but does not count
against /dev/shm's limit and shows no program in /proc."""

from __future__ import annotations

import errno
import os
import re
import resource
import secrets
import warnings
from typing import TYPE_CHECKING, Any

from mpgort import _core
from mpgort._errors import OutOfSharedMemory

if TYPE_CHECKING:
    import numpy as np

SHM_DIR = "/dev/shm"
# What a program of some thousand goroutines and messages needs, tables included.
MODEST = 64 << 20


def sweep() -> None:
    """Removes names that killed makers of this user have left."""
    try:
        names = os.listdir(SHM_DIR)
    except OSError:
        return
    for name in names:
        m = re.fullmatch(r"mpgort-(\d+)-(\d+)-[0-9a-f]+", name)
        if m and int(m[1]) == os.geteuid() and not os.path.exists(f"/proc/{m[2]}"):
            try:
                os.unlink(f"{SHM_DIR}/{name}")
            except OSError:
                pass


def make() -> int:
    """The descriptor of a fresh, empty, nameless object. Raises OutOfSharedMemory, OSError."""
    import posix_ipc

    sweep()
    name = f"/mpgort-{os.geteuid()}-{os.getpid()}-{secrets.token_hex(6)}"
    try:
        shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except (posix_ipc.Error, OSError) as e:
        if isinstance(e, OSError) and e.errno not in (errno.ENOSPC, errno.EROFS):
            raise
        raise OutOfSharedMemory(
            f"cannot make {SHM_DIR}{name}: {e}; a program needs {SHM_DIR} writable (mpgort doctor)"
        ) from e
    try:
        shm.unlink()
    except BaseException:
        os.close(shm.fd)
        raise
    return int(shm.fd)


def room() -> os.statvfs_result:
    try:
        return os.statvfs(SHM_DIR)
    except OSError as e:
        raise OutOfSharedMemory(
            f"{SHM_DIR}: {e.strerror}: a program needs it, as a tmpfs it may write to (mount -t "
            f"tmpfs tmpfs {SHM_DIR})"
        ) from e


def default_heap_bytes() -> int:
    """The ceiling of a heap nobody has set: what /dev/shm could hold, so that its limit is the one
    met."""
    st = room()
    size = max(st.f_blocks * st.f_frsize, 1 << 30)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    # Under ulimit -v the rest is for Python, and for the g table that is reserved beside the heap.
    return size if space == resource.RLIM_INFINITY else min(size, max(space // 4, 1 << 24))


def warn_if_small(heap_bytes: int | None) -> None:
    """Says once at start that /dev/shm holds less than was asked for, and the way out."""
    st = room()
    free = st.f_bavail * st.f_frsize
    asked = MODEST + 1 if heap_bytes is None else heap_bytes
    if free >= asked:
        return
    less = "" if heap_bytes is None else f" less than heap_bytes={heap_bytes};"
    warnings.warn(
        f"{SHM_DIR} has {free >> 20} MB free:{less} a program that needs more gets "
        "OutOfSharedMemory. Make it larger: docker run --shm-size=1g, or mount -o "
        "remount,size=1g /dev/shm",
        RuntimeWarning,
        stacklevel=4,
    )


def dtype_of(table: str) -> np.dtype[Any]:
    """The numpy dtype of one row of a table ("hdr", "p", "m", "g", ...), from the segment's
    layout."""
    import numpy as np

    rows = [r for r in _core.Program.layout() if r[0] == table]
    if not rows:
        raise KeyError(f"no table {table!r} in the segment's layout")
    size = max(offset + size for _, _, _, offset, size in rows)
    names, formats, offsets = [], [], []
    for _, field, text, offset, _ in rows:
        if field:
            names.append(field)
            formats.append(text)
            offsets.append(offset)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def header(prog: _core.Program) -> np.ndarray[Any, Any]:
    """The header now: one row, read-only, no copy. Source: shm/layout.h `struct shm_hdr`."""
    import numpy as np

    return np.frombuffer(prog.view(), dtype_of("hdr"), 1)


def g_table(prog: _core.Program) -> np.ndarray[Any, Any]:
    """The g table as it is now: shape (rows ever used,), read-only view, no copy.

    Rows change while you read them: copy first, then compare generations.
    Source: shm/layout.h `struct shm_g`; Go runtime2.go `g`."""
    import numpy as np

    h = header(prog)[0]
    n = min(int(h["g_next"]), int(h["g_committed"]))
    return np.frombuffer(prog.view(), dtype_of("g"), n, int(h["gtab_off"]))


def p_table(prog: _core.Program) -> np.ndarray[Any, Any]:
    """The P table as it is now: shape (Ps that have pages,), read-only view, no copy.

    Source: shm/layout.h `struct shm_p`; Go runtime2.go `p`."""
    import numpy as np

    h = header(prog)[0]
    return np.frombuffer(prog.view(), dtype_of("p"), int(h["max_p"]), int(h["ptab_off"]))


def m_table(prog: _core.Program) -> np.ndarray[Any, Any]:
    """The M table as it is now: shape (slots that have pages,), read-only view, no copy.

    Source: shm/layout.h `struct shm_m`; Go runtime2.go `m`."""
    import numpy as np

    h = header(prog)[0]
    return np.frombuffer(prog.view(), dtype_of("m"), int(h["max_m"]), int(h["mtab_off"]))
