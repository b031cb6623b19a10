"""What stands in a timer heap, and the trees of contexts, when workers are killed.

A timer belongs to no process: it fires for whoever waits, also when the worker that made it, on
whose P it stands, is gone. tests/shm/test_ticker.c and test_context.c kill at every store of a
firing, a stop, a reset and a cancel; these are whole programs."""

from __future__ import annotations

import os

import pytest

STORM_S = float(os.environ.get("MPGORT_STORM_S", "4"))


@pytest.mark.parametrize("procs", (1, 2))
def test_what_a_killed_worker_had_set_fires_for_the_others(program, procs):
    r = program(
        """
        import os, signal, sys, time
        import mpgort
        from mpgort import Ticker, after, after_func, chan, context, spawn

        async def tell(ch):
            await ch.send("told")

        async def set_and_die(out, told):
            t0 = time.monotonic()
            ctx, cancel = context.with_timeout(context.background(), 0.3)
            kid, _ = context.with_cancel(ctx)
            after_func(0.3, tell, told)
            await out.send((after(0.3), Ticker(0.05), kid, t0))
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            out, told = chan(), chan()
            h = spawn(set_and_die, out, told)
            c, ticker, ctx, t0 = await out.recv()
            try:
                await h
            except mpgort.MDied:
                pass
            ticks = [await ticker.c.recv() for _ in range(3)]
            assert ticks == sorted(ticks) and ticks[0] >= t0 + 0.04
            assert await c.recv() >= t0 + 0.29
            assert await told.recv() == "told"
            await ctx.done().recv()
            assert ctx.err() == context.DEADLINE_EXCEEDED and time.monotonic() >= t0 + 0.29
            ticker.stop()
            return "all fired"

        if __name__ == "__main__":
            print(mpgort.run(main, procs=int(sys.argv[1])))
    """,
        str(procs),
    )
    assert (r.status, r.out) == (0, "all fired\n"), r.err


@pytest.mark.timeout(120 + 3 * STORM_S)
@pytest.mark.parametrize("migrate", ("auto", "always"))
def test_timers_and_contexts_are_whole_however_many_workers_die(program, migrate):
    """Workers are killed at random while they set, stop, cancel and wait: all works as before, and
    in the end the heap has not a block more than after the same with no death."""
    r = program(
        """
        import gc, os, random, signal, sys, time
        import mpgort
        from mpgort import Ticker, Timer, _core, after, after_func, chan, context, go, select
        from mpgort import sleep, spawn
        from rest import comes_to_rest

        async def churn(seed, root, pids, t, k, f):
            rnd = random.Random(seed)
            await pids.send(os.getpid())
            for i in range(200):
                ctx, cancel = context.with_timeout(root, rnd.random() / 100)
                kid, stop = context.with_cancel(context.with_value(ctx, 1, [i]))
                await select(kid.done().recv, k.c.recv, t.c.recv, after(rnd.random() / 500).recv)
                rnd.choice((cancel, stop))()
                assert kid.err() is not None and kid.value(1) == [i]
                t.reset(rnd.random() / 100)
                f.reset(3600 + rnd.random())  # begun, it would panic with its worker
                if rnd.random() < 0.3:
                    t.stop(), f.stop()
                k.reset(0.001 + rnd.random() / 100)
                await pids.send(os.getpid())

        async def storm(seconds, deadly):
            rnd = random.Random(0)
            pids = chan()
            root, cancel = context.with_cancel(context.background())
            t, k, f = Timer(1), Ticker(0.01), after_func(3600, print)
            end = time.monotonic() + seconds
            died = 0
            handles = []
            while time.monotonic() < end:
                while len(handles) < 6:
                    handles.append(spawn(churn, rnd.random(), root, pids, t, k, f))
                i, pid = await select(pids.recv, after(10).recv)
                assert i == 0, "nobody does anything any more"
                if pid != os.getpid() and rnd.random() < deadly:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                for h in [h for h in handles if h.done()]:
                    handles.remove(h)
                    e = h.exception()
                    if e is not None:
                        died += 1
                        assert isinstance(e, mpgort.MDied), repr(e)
            k.stop(), t.stop(), f.stop()
            while handles:
                await select(pids.recv, after(0.01).recv)
                handles = [h for h in handles if not h.done()]
            kid, _ = context.with_timeout(root, 100)
            cancel()
            assert kid.err() == context.CANCELED
            assert await after(0.01).recv() > 0
            t.reset(0.01)
            assert await t.c.recv() > 0
            return died

        def blocks():
            gc.collect()
            comes_to_rest(_core.current())
            return _core.current().stats()["live_blocks"]

        async def main(seconds):
            assert await storm(0.5, 0) == 0
            before = blocks()
            assert await storm(seconds, 0.02) > 0
            # Workers still let go of what they kept warm.
            deadline = time.monotonic() + 20
            while blocks() > before and time.monotonic() < deadline:
                await sleep(0.01)
            assert blocks() <= before, (blocks(), before)
            return "whole"

        if __name__ == "__main__":
            print(mpgort.run(main, float(sys.argv[1]), procs=2))
    """,
        str(STORM_S),
        env={"MPGORT_MIGRATE": migrate},
        limit=STORM_S + 60,
    )
    assert (r.status, r.out) == (0, "whole\n"), r.err
