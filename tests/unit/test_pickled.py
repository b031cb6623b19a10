"""Handles in pickles that are not the codec's: somebody's pickle.dumps(), copy, a __getstate__."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import comes_to_rest, wait_until

import mpgort
from mpgort import chan, context, shared, sleep, spawn, sync


@pytest.fixture(scope="module", params=[0, 2])
def rt(request: pytest.FixtureRequest) -> Iterator[mpgort.Runtime]:
    with mpgort.Runtime(request.param) as runtime:
        yield runtime
        comes_to_rest(runtime._prog)


async def one_of_each() -> list[Any]:
    ctx, cancel = context.with_cancel(context.background())
    ch = chan(1)
    mutex = sync.Mutex()
    return [
        *(ch, ch.send_only(), ch.recv_only(), mpgort.nilchan),
        *(mpgort.Timer(3600), mpgort.Ticker(3600), ctx, cancel, context.background()),
        *(mutex, sync.RWMutex(), sync.WaitGroup(), sync.Once(), sync.Cond(mutex)),
        *(sync.Semaphore(1), sync.AtomicInt(5), sync.Map(), shared.dict(), spawn(int)),
    ]


async def they_are_the_same() -> int:
    handles = await one_of_each()
    for h in handles:
        for again in (pickle.loads(pickle.dumps(h)), copy.copy(h), copy.deepcopy(h)):
            assert again == h and type(again) is type(h) and hash(again) == hash(h), h
    handles[4].stop()
    handles[5].stop()
    return len(handles)


def test_every_handle_pickled_and_unpickled_is_the_same(rt: mpgort.Runtime) -> None:
    assert rt.spawn(they_are_the_same).result(60) == 19


async def locks(data: bytes) -> bytes:
    mutex, ch = pickle.loads(data)["both"]
    await mutex.lock()
    await ch.send(os.getpid())
    return pickle.dumps(sync.AtomicInt(7))


def test_a_name_is_good_in_every_process_of_the_program(rt: mpgort.Runtime) -> None:
    """Also when nobody else has the object any more."""

    async def main() -> tuple[bool, int]:
        mutex, ch = sync.Mutex(), chan(1)
        data = pickle.dumps({"both": (mutex, ch)})
        number = pickle.loads(await spawn(locks, data))
        assert await ch.recv() > 0
        return mutex.try_lock(), number.add(1)

    assert rt.spawn(main).result(60) == (False, 8)
    gc.collect()


async def pickles_and_waits(names: Any) -> None:
    await names.send((os.getpid(), pickle.dumps(sync.AtomicInt(3))))
    await sleep(3600)


def test_a_name_is_good_when_who_gave_it_has_died() -> None:
    with mpgort.Runtime(2) as runtime:
        names = runtime.chan(1)
        h = runtime.spawn(pickles_and_waits, names)
        pid, data = names.get(60)
        os.kill(pid, signal.SIGKILL)
        wait_until("its end is noticed", lambda: runtime._prog.stats()["deaths"] == 1)
        assert pickle.loads(data).add(1) == 4
        h.kill()
        with pytest.raises((mpgort.Killed, mpgort.MDied)):
            h.result(60)
        wait_until("all is as it should be", lambda: runtime._prog.check(False) == [])


def test_a_name_means_nothing_to_another_program() -> None:
    with mpgort.Runtime(0) as a, mpgort.Runtime(1) as b:
        ch = a.chan(1)
        data = pickle.dumps(ch)
        assert pickle.loads(data) is ch
        with pytest.raises(mpgort.SerializationError, match="another runtime"):
            b.spawn(id, ch).result(60)
        with pytest.raises(pickle.UnpicklingError, match="that has ended, or that"):
            b.spawn(loads, data).result(60)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(data)


def loads(data: bytes) -> None:
    pickle.loads(data)


def test_a_process_of_multiprocessing_is_refused_at_its_start(rt: mpgort.Runtime) -> None:
    ch = rt.chan(1)
    p = multiprocessing.get_context("spawn").Process(target=id, args=(ch,))
    with pytest.raises(TypeError, match="start a goroutine instead"):
        p.start()
