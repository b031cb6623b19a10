"""What runs out, or was never there: a clear error at the call that needed it, or the fallback that
is stated; all that was stored is intact, and the program goes on when something is freed.

/dev/shm is made full, or closed, by a library that stands before libc's (`short`): it needs no
rights and hits one commit of all, whichever process makes it. MPGORT_STORM=1: each of them."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

STORM = os.environ.get("MPGORT_STORM", "0") not in ("", "0")

SHORT = r"""
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdatomic.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <unistd.h>

    static _Atomic int *word; /* commits so far, the one that fails */
    __attribute__((constructor)) static void init(void)
    {
        const char *path = getenv("SHORT_FILE");
        int fd = path ? open(path, O_RDWR) : -1;
        if (fd >= 0) {
            word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            close(fd);
        }
    }
    int posix_fallocate(int fd, off_t at, off_t n)
    {
        if (word && atomic_fetch_add(&word[0], 1) + 1 == word[1])
            return ENOSPC;
        return fallocate(fd, 0, at, n) ? errno : 0;
    }
    int posix_fallocate64(int fd, off_t at, off_t n)
    {
        return posix_fallocate(fd, at, n);
    }
    pid_t fork(void) /* word[2] .. word[3] fail */
    {
        static pid_t (*next)(void);
        if (next == NULL)
            next = (pid_t(*)(void))dlsym(RTLD_NEXT, "fork");
        int n = word ? atomic_fetch_add(&word[4], 1) + 1 : 0;
        if (word && n >= word[2] && n <= word[3]) {
            errno = EAGAIN;
            return -1;
        }
        return next();
    }
    int shm_open(const char *name, int flags, mode_t mode)
    {
        (void)name, (void)flags, (void)mode;
        errno = atoi(getenv("SHORT_ERRNO"));
        return -1;
    }
"""


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    """The library; it lets shm_open() through if CLOSED is not defined."""
    folder = tmp_path_factory.mktemp("short")
    for name, source in (("full", SHORT[: SHORT.index("int shm_open")]), ("closed", SHORT)):
        (folder / f"{name}.c").write_text(source)
        cc = os.environ.get("CC", "gcc")
        made = [cc, "-O1", "-shared", "-fPIC", f"{name}.c", "-o", f"{name}.so", "-ldl"]
        subprocess.run(made, check=True, cwd=folder)
    return folder


PROGRAM = """
    import time
    import mpgort
    import numpy as np
    from mpgort import OutOfSharedMemory, _core, chan, spawn

    met = 0

    def again(fn, *args):
        global met
        while True:
            try:
                return fn(*args)
            except OutOfSharedMemory as e:
                assert "/dev/shm has no room for more than the" in str(e), e
                met += 1

    async def tried(fn, *args):
        global met
        while True:
            try:
                return await fn(*args)
            except OutOfSharedMemory as e:
                assert "/dev/shm has no room for more than the" in str(e), e
                met += 1

    async def ended(h, unborn):
        try:
            return await h
        except OutOfSharedMemory:
            if not h.done() or h.exception() is None:
                raise
            return unborn               # there was no room for it to begin

    async def echo(jobs, results):
        seen = 0
        while True:
            v, ok = await tried(jobs.recv_ok)
            if not ok:
                return seen * 1000 + met        # a number stands in place: it needs no room
            n, data = v
            assert len(data) == n and data[0] == data[-1] == n % 251, n
            await tried(results.send, v)
            seen += 1

    async def sleeper(gate, i):
        await tried(gate.recv)
        return i

    async def feed(jobs, sizes):
        for n in sizes:
            data = np.full(n, n % 251, np.uint8) if n > 50_000 else bytes([n % 251]) * n
            await tried(jobs.send, (n, data))
        jobs.close()
        return met

    async def main():
        jobs, results, gate = again(chan, 4), again(chan), again(chan)
        crew = [again(spawn, echo, jobs, results) for _ in range(3)]
        asleep = [again(spawn, sleeper, gate, i) for i in range(1500)]
        # Arrays each larger than all before: memory that is kept from those serves none of them.
        sizes = [n for i in range(12) for n in (
            10, 500, 3000, 20_000, int(1e5 * 1.15 ** (2 * i)), int(1e5 * 1.15 ** (2 * i + 1)))]
        feeder = again(spawn, feed, jobs, sizes)
        for _ in sizes:
            n, data = await tried(results.recv)
            assert len(data) == n and data[0] == data[-1] == n % 251, n
            del data
        ends = [divmod(await tried(ended, h, 1), 1000) for h in crew]
        gate.close()
        ended_as = [await tried(ended, h, None) for h in asleep]
        unborn = ended_as.count(None)
        assert unborn < 2 and all(got in (i, None) for i, got in enumerate(ended_as)), ended_as
        assert sum(seen for seen, _ in ends) == len(sizes)
        deadline = time.monotonic() + 10
        while (said := _core.current().check(False)) and time.monotonic() < deadline:
            time.sleep(0.01)            # workers end what they are at
        return met + unborn + await feeder + sum(n for _, n in ends), said

    if __name__ == "__main__":
        try:
            met, said = mpgort.run(main, procs=2)
            print("met" if met else "not met", said)
        except OutOfSharedMemory as e:
            print("at the start", e)
"""


@pytest.mark.timeout(3600 if STORM else 120)
def test_dev_shm_full_at_any_commit_is_an_error_there_and_nothing_else_is_touched(program, short):
    word = program.folder / "word"
    env = {"SHORT_FILE": str(word), "LD_PRELOAD": str(short / "full.so")}

    def run(n: int):
        """The program, its n-th commit refused (0: none); and how many commits it has made."""
        word.write_bytes(struct.pack("ii", 0, n) + bytes(4088))
        r = program(PROGRAM, env=env)
        return r, struct.unpack_from("i", word.read_bytes())[0]

    _, commits = run(0)
    commits -= commits // 8  # they are not always as many
    assert commits > 50
    some = sorted(random.sample(range(8, commits), 4))
    for n in range(1, commits) if STORM else (1, 4, *some):
        r, seen = run(n)
        assert r.status == 0, (n, r.err)
        if r.out.startswith("at the start"):
            assert n < 10 and "/dev/shm" in r.out and "docker run --shm-size" in r.out, (n, r.out)
        else:  # a goroutine on a worker may have met it where it counts for nobody
            assert r.out.endswith(" []\n"), (n, r.out)
        assert seen >= n


@pytest.mark.parametrize("why", (errno.EACCES, errno.ENOSPC, errno.EROFS))
def test_where_dev_shm_takes_no_file_the_start_says_so(program, short, why):
    """No right to it, no inode, a read-only one."""
    env = {"LD_PRELOAD": str(short / "closed.so"), "SHORT_ERRNO": str(why)}
    r = program(PROGRAM, env=env)
    assert r.status == 0, r.err
    assert "at the start cannot make /dev/shm/mpgort-" in r.out and "writable" in r.out, r.out


def test_without_dev_shm_the_start_says_so(program):
    r = program("""
        import mpgort
        from mpgort import _segment

        _segment.SHM_DIR = "/dev/not-there"

        async def main():
            pass

        for procs in (0, 2):
            try:
                mpgort.run(main, procs=procs)
            except mpgort.OutOfSharedMemory as e:
                print(e)
    """)
    assert r.status == 0, r.err
    assert r.out.count("/dev/not-there: No such file or directory: a program needs it") == 2, r.out


FULL = """
    import sys
    import mpgort
    from mpgort import chan, gosched, spawn

    FREED = 60      # what workers keep of it for themselves

    async def wait(gate, data):
        while True:
            try:
                await gate.recv()
                return len(data)
            except mpgort.OutOfSharedMemory:    # no room for it to park: it goes on
                pass

    async def ended(h):
        while True:
            try:
                return await h
            except mpgort.OutOfSharedMemory:
                if h.done() and h.exception() is not None:
                    return 0                    # there was no room for it to begin, even

    async def until_full(more, text):
        held, gate = [], chan()
        try:
            while True:
                held.append(spawn(wait, gate, bytes(more)))
        except mpgort.OutOfSharedMemory as e:
            assert text in str(e), e
        full = len(held)
        freed = again = 0
        while again < 10:                         # what was freed is room again
            try:
                held.append(spawn(wait, gate, bytes(more)))
                again += 1
            except mpgort.OutOfSharedMemory:
                freed += 1
                assert freed < FREED, freed
                await gate.send(None)             # one of them ends; needs no room
                while sum(h.done() for h in held) < freed:
                    try:
                        await gosched()
                    except mpgort.OutOfSharedMemory:
                        pass
        gate.close()
        ends = [await ended(h) for h in held]
        return full, all(n in (more, 0) for n in ends) and ends.count(0) < 5

    async def main(more, text):
        here = await until_full(more, text)
        if "goroutines" not in text:      # in a full heap no goroutine of a worker can park
            return here, here
        return here, await spawn(until_full, more, text)

    if __name__ == "__main__":
        what = sys.argv[1]
        options, more, text = {
            "goroutines": (dict(max_goroutines=500), 8, "max_goroutines=2004"),
            "heap": (dict(heap_bytes=8 << 20), 12_000, "heap_bytes=33554432"),
            "large": (dict(heap_bytes=8 << 20), 300_000, "heap_bytes=33554432"),
        }[what]
        (here, whole), (there, too) = mpgort.run(main, more, text, procs=2, **options)
        print(whole, too, min(here, there) > (10 if what == "large" else 100))
"""


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("what", ("goroutines", "heap", "large"))
def test_what_is_full_says_so_at_the_call_and_has_room_when_something_is_freed(program, what):
    r = program(FULL, what)
    assert (r.status, r.out) == (0, "True True True\n"), r.err


def test_how_a_goroutine_ended_can_be_read_in_a_full_heap(program):
    r = program("""
        import mpgort
        from mpgort import chan, spawn

        async def fails():
            raise ValueError("a reason of more than a few bytes")

        async def answers():
            return "a result of more than a few bytes"

        async def main():
            ends = [spawn(fails), spawn(answers)]
            for h in ends:
                while not h.done():
                    await mpgort.gosched()
            held = chan(1_000_000)
            for size in (100_000, 10_000, 1000, 100, 24):
                try:
                    while True:
                        await held.send(bytes(size))
                except mpgort.OutOfSharedMemory:
                    pass
            for _ in range(100):
                assert str(ends[0].exception()) == "a reason of more than a few bytes"
                assert ends[1].result() == await ends[1] == "a result of more than a few bytes"
            print("read")

        if __name__ == "__main__":
            mpgort.run(main, procs=1, heap_bytes=16 << 20)
    """)
    assert (r.status, r.out) == (0, "read\n"), r.err


LIMIT = """
    import resource, sys
    import mpgort
    from mpgort import spawn

    async def twice(n):
        return n * 2

    async def main():
        return [await spawn(twice, i) for i in range(5)]

    if __name__ == "__main__":
        what, method, limits = getattr(resource, sys.argv[1]), sys.argv[2], sys.argv[3:]
        soft, hard = resource.getrlimit(what)
        mpgort.run(main, procs=0)                # what a start imports
        for limit in map(int, limits):
            resource.setrlimit(what, (limit, hard))
            try:
                r = mpgort.run(main, procs=2, start_method=method)
                print(limit, r == [0, 2, 4, 6, 8])
            except OSError as e:
                print(limit, e.errno, e)
            resource.setrlimit(what, (soft, hard))
        print("after", mpgort.run(main, procs=2, start_method=method))
"""


@pytest.mark.parametrize("method", ("fork", "forkserver"))
def test_a_limit_on_open_files_is_an_error_with_the_way_out_or_no_matter(program, method):
    r = program(LIMIT, "RLIMIT_NOFILE", method, *map(str, range(5, 13)), "20")
    *each, last = r.out.splitlines()
    assert (r.status, last) == (0, "after [0, 2, 4, 6, 8]"), r.err
    assert each[-1] == "20 True", r.out
    for line in each[:-1]:
        assert line.endswith(" True") or "raise ulimit -n" in line, r.out
    assert "raise ulimit -n" in each[0]


def test_a_limit_on_memory_makes_a_smaller_heap_or_an_error_with_the_way_out(program):
    r = program(LIMIT, "RLIMIT_AS", "fork", str(300 << 20), str(4 << 30))
    small, large, last = r.out.splitlines()
    assert (r.status, last) == (0, "after [0, 2, 4, 6, 8]"), r.err
    assert "ulimit -v" in small and "heap_bytes" in small, r.out
    assert large.endswith(" True"), r.out


def test_without_pidfds_workers_are_refused_and_procs_0_goes_without(program):
    r = program("""
        import ctypes, platform, struct
        import mpgort
        from mpgort import spawn

        async def one():
            return 1

        async def main():
            return await spawn(one)

        PIDFD_OPEN = 434                          # on every machine
        code = b"".join(struct.pack("HBBI", *line) for line in (
            (0x20, 0, 0, 0),                      # load the number of the system call
            (0x15, 0, 1, PIDFD_OPEN),             # this one: ENOSYS, as an old kernel
            (0x06, 0, 0, 0x00050000 | 38),
            (0x06, 0, 0, 0x7fff0000)))            # else allowed
        lines = ctypes.create_string_buffer(code)
        prog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(lines)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(38, 1, 0, 0, 0) == 0    # no new privileges
        assert libc.prctl(22, 2, prog, 0, 0) == 0, ctypes.get_errno()
        try:
            mpgort.run(main, procs=2)
        except mpgort.UnsupportedPlatform as e:
            print(e)
        print(mpgort.run(main, procs=0))
    """)
    assert r.status == 0, r.err
    first, last = r.out.splitlines()
    assert "pidfd_open: Function not implemented" in first and "procs=0" in first, r.out
    assert last == "1"


@pytest.mark.parametrize(
    ("what", "limit", "way"),
    (("FSIZE", 1 << 20, "ulimit -f"), ("SIGPENDING", 0, "ulimit -i")),
    ids=("files", "signals"),
)
def test_a_limit_on_file_sizes_or_pending_signals_is_an_error_with_the_way_out(
    program, what, limit, way
):
    r = program(LIMIT, f"RLIMIT_{what}", "fork", str(limit))
    each, last = r.out.splitlines()
    assert (r.status, last) == (0, "after [0, 2, 4, 6, 8]"), r.err
    assert each.startswith(f"{limit} ") and way in each, r.out


REPLACED = """
    import os, resource, sys, time
    import mpgort
    from mpgort import _core, _keeper, sleep, spawn

    async def pid(end):
        if end:
            os._exit(3)
        return os.getpid()

    async def busy():
        time.sleep(0.02)
        return os.getpid()

    async def die(h):
        try:
            await h
        except mpgort.MDied:
            pass

    def crew(kind):
        return [pid for _, k, pid, _ in _core.current().slots() if k == kind]

    async def until(n):
        while len(crew(_core.M_WORKER)) != n:
            await sleep(0.005)
"""


@pytest.mark.parametrize("procs", (1, 2))
def test_a_worker_whose_place_no_process_can_take_now_is_replaced_later(program, short, procs):
    """The first five attempts are refused; who still works goes on meanwhile."""
    word = program.folder / "word"
    first = 2 + procs  # of the keeper, of the workers
    word.write_bytes(struct.pack("5i", 0, 0, first, first + 4, 0) + bytes(4076))
    source = (
        REPLACED
        + """
    async def main(procs):
        await until(procs)
        await die(spawn(pid, True))
        if procs > 1:
            assert await spawn(pid, False)
        while _core.current().stats()["replacements"] == 0:     # the dead one's slot is free
            await sleep(0.005)
        await until(procs)
        assert await spawn(pid, False)
        print("replaced", _core.current().stats()["replacements"])

    mpgort.run(main, int(sys.argv[1]), procs=int(sys.argv[1]))
"""
    )
    env = {"SHORT_FILE": str(word), "LD_PRELOAD": str(short / "full.so")}
    r = program(source, str(procs), env=env)
    assert (r.status, r.out) == (0, "replaced 1\n"), r.err
    assert struct.unpack_from("i", word.read_bytes(), 16)[0] == first + 5


def test_without_any_worker_for_long_the_program_ends_with_the_way_out(program, short):
    word = program.folder / "word"
    word.write_bytes(struct.pack("5i", 0, 0, 3, 1 << 30, 0) + bytes(4076))
    source = (
        REPLACED
        + """
    async def main():
        await until(1)
        await die(spawn(pid, True))
        await spawn(pid, False)

    _keeper.PATIENCE_S = 0.3
    try:
        mpgort.run(main, procs=1)
    except OSError as e:
        print(e)
"""
    )
    env = {"SHORT_FILE": str(word), "LD_PRELOAD": str(short / "full.so")}
    r = program(source, env=env)
    assert r.status == 0 and "raise ulimit -u" in r.out, (r.out, r.err)


def test_a_keeper_without_a_descriptor_for_a_new_worker_goes_on_when_it_has_one(program):
    r = program(
        REPLACED
        + """
    def watched(keeper):
        "The descriptors that it has of workers."
        pids = [f"Pid:\\t{w}\\n" for w in crew(_core.M_WORKER)]
        info = {int(n): open(f"/proc/{keeper}/fdinfo/{n}").read()
                for n in os.listdir(f"/proc/{keeper}/fd")}
        return info.keys(), {n for n, text in info.items() if any(p in text for p in pids)}

    def least(keeper):
        "A limit with which it has no descriptor for another worker when one has died."
        while len(watched(keeper)[1]) < 2:
            pass
        used, workers = watched(keeper)
        return min(set(range(1000)) - used | workers)

    async def main():
        await until(2)
        (keeper,) = crew(_core.M_KEEPER)
        soft, hard = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (least(keeper), hard))
        await die(spawn(pid, True))
        for _ in range(20):                     # made, and ended at once: nobody could watch it
            assert await spawn(pid, False)
            await sleep(0.02)
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (soft, hard))
        while len({await h for h in [spawn(busy), spawn(busy)]}) < 2:
            pass
        print("two again")

    mpgort.run(main, procs=2)
"""
    )
    assert (r.status, r.out) == (0, "two again\n"), r.err


STREAMLESS = """
    import os
    import sys

    if __name__ == "__main__":
        for fd in map(int, sys.argv[3]):
            os.close(fd)
    import mpgort

    def descriptors():
        return sorted(fd for fd in range(3) if os.path.lexists(f"/proc/self/fd/{fd}"))

    async def main():
        return [await mpgort.spawn(descriptors) for _ in range(3)]

    if __name__ == "__main__":
        found = mpgort.run(main, procs=1, start_method=sys.argv[2])
        text = f"{found} {descriptors()}"
        with open(sys.argv[1], "w") as f:
            f.write(text)
"""


@pytest.mark.parametrize("method", ("fork", "forkserver", "spawn"))
@pytest.mark.parametrize("closed", ("0", "012"))
def test_a_program_whose_streams_are_closed_keeps_its_own_files_clear_of_them(
    program, tmp_path, method, closed
):
    """Its children have /dev/null there: nothing else is opened under these numbers."""
    r = program(STREAMLESS, str(tmp_path / "found"), method, closed)
    assert r.status == 0, r.err
    left = [] if closed == "012" else [1, 2]
    assert (tmp_path / "found").read_text() == f"{[[0, 1, 2]] * 3} {left}"


def test_without_a_current_directory_new_interpreters_cannot_start_and_forks_can(program):
    r = program("""
        import os, tempfile
        import mpgort

        if __name__ == "__main__":
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
            print(mpgort.run(abs, -1, procs=1, start_method="fork"))
            try:
                mpgort.run(abs, -1, procs=1, start_method="spawn")
            except RuntimeError as e:
                print(e)
    """)
    assert r.out.startswith("1\nthe current directory is no more"), (r.out, r.err)


def test_a_file_whose_name_is_no_text_can_be_the_program(program, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.py"))
    path.write_text(
        "import mpgort\n"
        "async def main():\n"
        "    mpgort.go(mpgort.sleep, 0)\n"
        "    await mpgort.chan().recv()\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        mpgort.run(main, procs=1)\n"
        "    except mpgort.Deadlock as e:\n"
        "        print(ascii(str(e)))\n"
    )
    r = program(path)
    assert r.status == 0, r.err
    assert "/caf\\udce9.py:4" in r.out
