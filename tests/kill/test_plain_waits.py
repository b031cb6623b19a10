"""Plain functions that wait on a worker, below them the loop for who is at home there
(_core/block.c), and workers that are killed at any moment.

Pairs of a goroutine that is heavy or pinned and a plain function, which wait for each other; they
mostly share a worker. Of a pair that loses one by a death, main cancels or kills the other. Every
message arrives once, in order, or was in the hands of one that is reported dead; nobody hangs.
MPGORT_STORM_S seconds (default 2)."""

from __future__ import annotations

import os

import pytest

STORM_S = float(os.environ.get("MPGORT_STORM_S", "2"))

STORM = """
    import os, sys, time
    import mpgort
    from mpgort import Closed, _core, after, chan, select, sleep, spawn, sync
    from rest import breaches

    PAIRS = 8

    def keeps(pair):
        return "x" * 20_000 if pair % 3 else open(os.devnull)

    # Each of a pair: messages (pair, i) to out, i = 0, 1, ..; of others it starts, up is told.

    def puts(ch, n):
        for i in range(n):
            ch.put(i, timeout=20)
        ch.close()

    async def from_a_plain_one(pair, out, up, n):
        held, ch = keeps(pair), chan()
        h = spawn(puts, ch, n)
        await up.send((pair, h))
        async for i in ch:
            await out.send((pair, i))
        await h
        return bool(held)

    def gets(pair, ch, out):
        while True:
            try:
                out.put((pair, ch.get(timeout=20)), timeout=20)
            except Closed:
                return

    async def to_a_plain_one(pair, out, up, n):
        held, ch = keeps(pair), chan()
        h = spawn(gets, pair, ch, out)
        await up.send((pair, h))
        for i in range(n):
            await ch.send(i)
        ch.close()
        await h
        return bool(held)

    async def one(pair, i, out, ch):
        held = keeps(pair)
        await ch.recv()
        await out.send((pair, i))
        return bool(held)

    def results(pair, out, up, n):
        for i in range(n):
            ch = chan()
            h = spawn(one, pair, i, out, ch)
            up.put((pair, h), timeout=20)
            ch.put(None, timeout=20)
            assert h.result(timeout=20)
        return True

    async def done_soon(pair, i, wg, out):
        held = keeps(pair)
        await out.send((pair, i))
        wg.done()
        return bool(held)

    async def blocks_its_m(pair, out, up, n):       # instead of awaiting
        held, back = keeps(pair), chan()
        for i in range(n):
            h = spawn(one, pair, i, out, back)
            await up.send((pair, h))
            back.put(None, timeout=20)
            h.result(timeout=20)
        return bool(held)

    KINDS = (from_a_plain_one, to_a_plain_one, results, blocks_its_m)
    ENDS = (mpgort.MDied, mpgort.Cancelled, mpgort.Killed, TimeoutError)

    async def main(seconds):
        out, up = chan(8), chan()
        leads, others, seen, failed, ended = {}, {}, {}, {}, {}
        total = 0

        def start():
            nonlocal total
            kind = KINDS[total % len(KINDS)]
            leads[total] = spawn(kind, total, out, up, 20 + total % 3 * 20)
            others[total], seen[total], failed[total] = [], [], 0
            total += 1

        def look(again):
            for pair, lead in list(leads.items()):
                if not lead.done():
                    if any(h.done() and h.exception() is not None for h in others[pair]):
                        lead.kill() if pair // 4 % 2 else lead.cancel()
                    continue
                exc = lead.exception()
                assert exc is None or isinstance(exc, ENDS), (pair, exc)
                left = [h for h in others[pair] if not h.done()]
                if exc is None:
                    assert not left or pair % len(KINDS) == 2, (pair, left)
                for i, h in enumerate(left):
                    h.kill() if (pair + i) % 2 else h.cancel()
                if not left:
                    bad = [h for h in (lead, *others[pair]) if h.exception() is not None]
                    failed[pair], ended[pair] = len(bad), exc is None
                    del leads[pair], others[pair]
                    if again:
                        start()

        for _ in range(PAIRS):
            start()
        print("up", flush=True)
        end = time.monotonic() + seconds
        while leads or len(out):
            i, v = await select(out.recv, up.recv, after(0.01).recv)
            if i == 0:
                seen[v[0]].append(v[1])
            elif i == 1:
                if v[0] in others:
                    others[v[0]].append(v[1])
                else:
                    v[1].cancel()
            if i == 2 or total % 4 == 0:
                look(time.monotonic() < end)
        lost = 0
        for pair, got in seen.items():
            assert got == sorted(set(got)), (pair, got)
            holes = got[-1] + 1 - len(got) if got else 0
            assert holes <= failed[pair], (pair, got, failed[pair])
            if ended[pair]:
                assert got == list(range(20 + pair % 3 * 20)), (pair, got)
            lost += holes
        prog = _core.current()
        return total, lost, sum(failed.values()), prog.stats()["deaths"], breaches(prog)

    if __name__ == "__main__":
        seconds, procs = float(sys.argv[1]), int(sys.argv[2])
        total, lost, dead, deaths, said = mpgort.run(main, seconds, procs=procs)
        print("pairs", total, "lost", lost, "dead", dead, "deaths", deaths)
        print("\\n".join(said) or "whole")
"""


@pytest.mark.timeout(120 + 3 * STORM_S)
@pytest.mark.parametrize(("migrate", "procs"), [("auto", 2), ("always", 3), ("never", 1)])
def test_in_a_storm_of_kills_who_waits_for_whom_is_at_home_hangs_nowhere(program, migrate, procs):
    r = program.storm(STORM, STORM_S, str(procs), migrate=migrate)
    assert r.out.endswith("whole\n"), r.out
    words = r.out.splitlines()[-2].split()
    assert int(words[1]) > 0 and int(words[7]) > 0, r.out
