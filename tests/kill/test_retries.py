"""spawn(..., retries=n): a goroutine whose worker dies goes on from its last await, and no await of
it is repeated or lost.

main never dies, and what it asks for passes through goroutines that do: by their own hand after
each of their awaits, and, in the storm, whenever it pleases somebody outside (MPGORT_STORM_S
seconds, 1 without it)."""

from __future__ import annotations

import os

import pytest
from conftest import Programs

STORM_S = float(os.environ.get("MPGORT_STORM_S", "1"))
MIGRATE = ("auto", "always", "never")

DIE = """
    import faulthandler, os, signal, sys, time
    import mpgort
    from mpgort import _core, chan, default, select, sleep, spawn, gosched, sync
    from rest import comes_to_rest

    WAYS = (lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL),
            lambda: os.kill(os.getpid(), signal.SIGSEGV))

    def die(turn, every=2):
        # Each second time anybody comes here, so each place is passed at last.
        n = turn.add(1)
        if n % every == 0:
            faulthandler.disable()
            WAYS[n // every % 3]()
            time.sleep(60)

    # As ch.send, ch.recv; but if h, at the other end, has failed, its exception.
    async def or_end(h, case):
        end = chan()
        async def watch():
            try:
                await h
            finally:
                end.close()
        mpgort.spawn(watch)
        i, v = await select(case, end.recv)
        return v if i == 0 else await h

    async def send_to(ch, v, h):
        await or_end(h, (ch.send, v))

    async def recv_from(ch, h):
        return await or_end(h, ch.recv)

    def whole():
        comes_to_rest(_core.current())
"""

MAIN = """
    if __name__ == "__main__":
        mpgort.run(main, *map(int, sys.argv[2:]), procs=int(sys.argv[1]))
        print("held")
"""


def holds(program: Programs, main: str, *args: int, migrate: str | None = None) -> None:
    """Runs main(*args[1:]) of that text with procs=args[0]; its assertions hold."""
    env = {"MPGORT_MIGRATE": migrate} if migrate else None
    r = program(DIE + main + MAIN, *map(str, args), env=env)
    assert (r.status, r.out) == (0, "held\n"), r.err


@pytest.mark.parametrize(
    ("procs", "migrate"), ((1, "auto"), (2, "auto"), (2, "always"), (2, "never"))
)
def test_one_that_dies_after_each_of_its_awaits_repeats_and_loses_none(program, procs, migrate):
    holds(
        program,
        """
    async def child(x, turn):
        return x * 2

    async def stage(inbox, outbox, tools, turn):
        mutex, sem, rw, wg, never = tools
        local = []
        die(turn)
        async for x in inbox:
            die(turn)
            local.append(x)
            async with mutex:
                die(turn)
                await sleep(0.0001)
                die(turn)
            die(turn)
            await sem.acquire()
            die(turn)
            async with rw.reader():
                die(turn)
            await gosched()
            die(turn)
            async with rw.writer():
                await sleep(0)
                die(turn)
            await wg.wait()
            die(turn)
            double = await spawn(child, x, turn)
            die(turn)
            i, v = await select(never.recv, default)
            assert (i, v) == (1, None)
            die(turn)
            i, v = await select(never.recv, (outbox.send, (x, double, list(local))))
            assert (i, v) == (1, None)
            die(turn)
        die(turn)
        v, ok = await inbox.recv_ok()
        die(turn)
        assert (v, ok) == (None, False) and await inbox.recv() is None
        die(turn)
        return len(local)

    async def main(cap):
        inbox, middle, outbox = chan(cap), chan(cap), chan(cap)
        turn = sync.AtomicInt()
        tools = (sync.Mutex(), sync.Semaphore(1000), sync.RWMutex(), sync.WaitGroup(), chan())
        h = spawn(stage, inbox, outbox, tools, turn, retries=1000)
        for n in range(3):
            await send_to(inbox, n, h)
            got = await recv_from(outbox, h)
            assert got == (n, 2 * n, list(range(n + 1))), got
        inbox.close()
        assert await h == 3
        assert len(outbox) == 0 and tools[0].try_lock() and tools[2].try_lock()
        assert tools[1].try_acquire(1000 - 3) and not tools[1].try_acquire()
        assert _core.current().stats()["deaths"] >= 20
        whole()
    """,
        procs,
        procs - 1,
        migrate=migrate,
    )


def test_it_is_run_again_as_often_as_was_said_and_then_ends_with_mdied(program):
    holds(
        program,
        """
    async def dies(runs, ways):
        await sleep(0)
        WAYS[runs.add(1) % 3]()
        time.sleep(60)

    def plain(runs, data):
        n = runs.add(1)
        if n < 3:
            os._exit(n)
        return n, data

    async def main():
        for n in (1, 2, 4):
            runs = sync.AtomicInt()
            h = spawn(dies, runs, 1, retries=n)
            try:
                await h
            except mpgort.MDied as e:
                assert e.goid == h.id and h.status() == "died"
            else:
                raise AssertionError("it lives")
            assert runs.load() == n + 1, runs.load()
        runs = sync.AtomicInt()
        assert await spawn(plain, runs, {"a": [1]}, retries=2) == (3, {"a": [1]})
        whole()
    """,
        2,
    )


def test_kill_and_timeout_end_it_for_good_and_a_cancel_reaches_it_once(program):
    holds(
        program,
        """
    async def parks(up, runs):
        runs.add(1)
        await up.send(1)
        await chan().recv()

    async def computes(up, runs):
        runs.add(1)
        await up.send(1)
        while True:
            pass

    async def outcome(h):
        try:
            return await h
        except BaseException as e:
            return type(e).__name__

    async def cancelled(up, turn):
        seen = 0
        await up.send(1)
        try:
            await chan().recv()
        except mpgort.Cancelled:
            seen += 1
            die(turn, 1) if turn.load() == 0 else None
        await sleep(0.001)
        die(turn, 2) if turn.load() == 1 else None
        await up.send(seen)
        return seen

    async def busy(up, gate, turn):
        seen = 0
        await up.send(1)
        while gate.load() == 0:
            pass
        try:
            await sleep(0)  # the cancel came while it ran: it is raised at this await
        except mpgort.Cancelled:
            seen += 1
            if turn.add(1) == 1:
                os._exit(1)
        return seen

    async def main():
        up = chan()
        for fn in (parks, computes):
            runs = sync.AtomicInt()
            h = spawn(fn, up, runs, retries=9)
            await up.recv()
            assert h.kill()
            assert await outcome(h) == "Killed"
            h = spawn(fn, up, runs, retries=9, timeout=0.05)
            await up.recv()
            assert await outcome(h) == "TimeoutError"
            assert runs.load() == 2, runs.load()
        turn, up = sync.AtomicInt(), chan()
        h = spawn(cancelled, up, turn, retries=9)
        await up.recv()
        h.cancel()
        assert await up.recv() == 1 and await h == 1 and turn.load() == 2
        turn, gate = sync.AtomicInt(), sync.AtomicInt()
        h = spawn(busy, up, gate, turn, retries=9)
        await up.recv()
        h.cancel()
        gate.store(1)
        assert await h == 1 and turn.load() == 2
        whole()
    """,
        2,
    )


def test_what_cannot_be_stored_is_said_at_the_await_and_what_ties_to_a_process_at_the_call(program):
    holds(
        program,
        """
    async def holds(up):
        f = open("/dev/null")
        try:
            await up.send(1)
        except mpgort.SerializationError as e:
            text = str(e)
        f.close()
        del f
        await up.send(2)
        try:
            mpgort.lock_os_thread()
        except RuntimeError as e:
            return text, str(e)

    async def main():
        up = chan()
        h = spawn(holds, up, retries=3)
        assert await up.recv() == 2
        text, tied = await h
        assert "local 'f'" in text and "retries" in text, text
        assert "retries" in tied
        for bad in (-1, "3", None, 2.5):
            try:
                spawn(holds, up, retries=bad)
            except (ValueError, TypeError) as e:
                assert "retries" in str(e)
            else:
                raise AssertionError(bad)
        await spawn(sleep, 0, retries=0)
        whole()
    """,
        1,
    )


@pytest.mark.parametrize("procs", (1, 2))
def test_threads_groups_conds_and_blocking_calls_do_not_disturb_it(program, procs):
    holds(
        program,
        """
    def slow(x):
        time.sleep(0.01)
        return x + 1

    async def threads(out, turn):
        await out.send(1)
        v = await mpgort.to_thread(slow, 1)
        die(turn)
        await out.send(v)
        return v

    async def one(x):
        return x

    async def group(turn):
        async with mpgort.Group() as g:
            die(turn)
            await sleep(0)
            die(turn)
            h = g.spawn(one, 7)
        return await h

    async def waits(c, m, out, turn):
        async with m:
            await out.send(1)
            await c.wait()
            die(turn)
            await c.wait()
            die(turn)
        await out.send(2)

    def blocks(inbox, out, turn):
        n = turn.add(1)
        if n == 1:
            os._exit(1)
        v = inbox.get()
        if n == 2:
            inbox.put(v)  # back, for the next run
            os._exit(1)
        out.put(v)
        return v

    async def main():
        turn, out = sync.AtomicInt(1), chan()
        h = spawn(threads, out, turn, retries=9)
        assert await out.recv() == 1 and await out.recv() == 2 and await h == 2
        assert await spawn(group, turn, retries=9) == 7
        m = sync.Mutex()
        c = sync.Cond(m)
        h = spawn(waits, c, m, out, turn, retries=9)
        await out.recv()
        while not h.done():
            async with m:
                c.broadcast()
            i, v = await select(out.recv, default)
            await sleep(0.001)
        await h
        inbox = chan(1)
        h = spawn(blocks, inbox, out, sync.AtomicInt(), retries=9)
        await inbox.send(5)
        assert await out.recv() == 5 and await h == 5
        whole()
    """,
        procs,
    )


def test_a_worker_that_retires_takes_none_of_its_runs(program):
    r = program(
        DIE
        + """
    async def many(ch):
        t = 0
        async for n in ch:
            t += n
        return t

    async def limits():
        ch = chan()
        h, pids = spawn(many, ch, retries=1), set()
        for n in range(100):
            pids.add(await spawn(os.getpid))
            await ch.send(n)
        ch.close()
        assert await h == 4950 and len(pids) > 3, pids

    if __name__ == "__main__":
        mpgort.run(limits, procs=1, max_tasks_per_m=10)
        print("undisturbed")
    """
    )
    assert (r.status, r.out) == (0, "undisturbed\n"), r.err


def test_with_procs_0_it_is_a_goroutine_like_another(program):
    holds(
        program,
        """
    async def stage(inbox, outbox, m):
        async for n in inbox:
            async with m:
                await outbox.send(n)
            i, v = await select(chan().recv, default)
        return "end"

    async def main():
        inbox, outbox, m = chan(1), chan(), sync.Mutex()
        h = spawn(stage, inbox, outbox, m, retries=1)
        for n in range(10):
            await inbox.send(n)
            assert await outbox.recv() == n
        inbox.close()
        assert await h == "end"
        whole()
    """,
        0,
    )


def test_an_executor_with_retries_runs_again_what_its_dead_worker_ran(program, tmp_path):
    r = program(
        """
        import os, sys
        import mpgort

        def turns(x):
            path = os.path.join(sys.argv[1], str(x))
            with open(path, "a") as f:
                f.write(".")
            return os.path.getsize(path)

        def plain(x, retries=None):
            n = turns(x)
            if n <= x:
                os._exit(1)
            return x, n, retries

        async def coroutine(x):
            await mpgort.sleep(0)
            return plain(x)

        if __name__ == "__main__":
            with mpgort.Executor(2, retries=2) as e:
                fs = [e.submit(plain, n, retries="its own") for n in range(4)]
                assert [f.result() for f in fs[:3]] == [(n, n + 1, "its own") for n in range(3)]
                assert isinstance(fs[3].exception(), mpgort.MDied) and turns(3) == 4
                assert e.submit(coroutine, 11 - 9).result() == (2, 4, None)
                assert list(e.map(plain, [0, 1, 2])) == [(0, 2, None), (1, 3, None), (2, 5, None)]
            for bad in (-1, "2", 1.5):
                try:
                    mpgort.Executor(retries=bad)
                except (ValueError, TypeError) as e:
                    assert "retries" in str(e)
                else:
                    raise AssertionError(bad)
            print("again")
    """,
        str(tmp_path),
    )
    assert (r.status, r.out) == (0, "again\n"), r.err


STORM = (
    DIE
    + """
    async def stage(inbox, outbox, m, busy):
        n = 0
        async for x in inbox:
            assert x == n, (x, n)
            async with m:
                if n % 5 == 0:
                    await sleep(0.0005)
            if n % 3:
                await outbox.send(x)
            else:
                await select((outbox.send, x), chan().recv)
            n += 1
        outbox.close()
        return n

    async def main(seconds):
        pipes, m = [chan(i % 3) for i in range(5)], sync.Mutex()
        crew = [spawn(stage, pipes[i], pipes[i + 1], m, i, retries=10**6) for i in range(4)]
        print("up", flush=True)
        end, sent, got = time.monotonic() + seconds, 0, 0
        while time.monotonic() < end or got < sent:
            send = [(pipes[0].send, sent)] if time.monotonic() < end else []
            i, v = await select(pipes[-1].recv, *send)
            if i == 0:
                assert v == got, (v, got)
                got += 1
            else:
                sent += 1
        pipes[0].close()
        return sent, [await h for h in crew], m, _core.current().stats()["deaths"]

    if __name__ == "__main__":
        async def all(seconds):
            sent, ends, m, deaths = await main(seconds)
            assert ends == [sent] * 4 and m.try_lock()
            whole()
            print("sent", sent, "deaths", deaths)
        mpgort.run(all, float(sys.argv[1]), procs=3)
    """
)


@pytest.mark.timeout(120 + 3 * STORM_S)
@pytest.mark.parametrize("migrate", MIGRATE)
def test_in_a_storm_of_kills_every_message_passes_four_of_them_once_and_in_order(program, migrate):
    r = program.storm(STORM, STORM_S, migrate=migrate, numbers=(1, 1, 2), pause=0.03)
    words = r.out.split()
    assert int(words[-3]) > 0 and int(words[-1]) > 0, r.out
