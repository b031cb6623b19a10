"""What cannot cross, or finds no room, is an error of its call; all else is as it was."""

from __future__ import annotations

import copyreg
import ctypes
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import comes_to_rest, wait_until

import mpgort
from mpgort import chan, context, go, select, shared, spawn, sync


def taker(*args: Any, **kwargs: Any) -> None:
    pass


async def sends(what: Any) -> list[str]:
    """Each call of a goroutine that hands a value over, and what it says of one that cannot be."""
    m, flight, ch, said = sync.Map(), sync.SingleFlight(), chan(1), []

    async def in_a_group() -> None:
        error = None
        async with mpgort.Group() as g:
            try:
                g.spawn(taker, what)
            except mpgort.SerializationError as e:
                error = e
        if error is not None:
            raise error

    calls: list[Callable[[], Any]] = [
        lambda: go(taker, what),
        lambda: spawn(taker, key=what),
        lambda: spawn(lambda: what),
        lambda: ch.send(what),
        lambda: ch.send([1, {"a": what}]),
        lambda: ch.put(what),
        lambda: ch.as_queue().put(what),
        lambda: select((ch.send, what)),
        lambda: m.store("k", what),
        lambda: m.load_or_store("k", what),
        lambda: shared.dict({"k": what}),
        lambda: context.with_value(context.background(), "k", what),
        lambda: mpgort.after_func(100, taker, what),
        lambda: sync.WaitGroup().go(taker, what),
        lambda: flight.do("k", taker, what),
        in_a_group,
    ]
    for i, call in enumerate(calls):
        try:
            value = call()
            if hasattr(value, "__await__"):
                await value
        except mpgort.SerializationError as e:
            assert e.__cause__ is not None, i
            said.append(str(e))
        else:
            raise AssertionError(f"call {i} went through")
    assert len(ch) == 0 and len(m) == 0 and len(calls) == len(said)
    assert mpgort.num_goroutine() == 1
    await ch.send(1)
    assert await ch.recv() == 1
    return said


@pytest.mark.parametrize("procs", [0, 2])
@pytest.mark.parametrize("kind", ["file", "socket", "lock"])
def test_every_call_that_sends_says_at_once_what_cannot_cross(procs: int, kind: str) -> None:
    what: Any = {
        "file": lambda: open("/dev/null"),
        "socket": socket.socket,
        "lock": threading.Lock,
    }[kind]()
    try:
        for text in mpgort.run(sends, what, procs=procs):
            assert f"{kind} (" in text and "never crosses" in text, text
    finally:
        if kind != "lock":
            what.close()


def results(kind: str) -> Any:
    if kind == "closure":
        lock = threading.Lock()
        return lambda: lock
    return {"deep": [threading.Lock()]}


def test_a_result_that_cannot_cross_is_the_handles_error_with_the_path() -> None:
    with mpgort.Runtime(1) as rt:
        with pytest.raises(mpgort.SerializationError, match=r"\['deep'\]\[0\].*a lock"):
            rt.spawn(results, "dict").result(timeout=30)
        with pytest.raises(mpgort.SerializationError, match=r"\.lock.*a lock"):
            rt.spawn(results, "closure").result(timeout=30)


class Obliging(socket.socket):
    """A reducer that would do it."""

    def __reduce__(self) -> Any:
        return socket.socket, ()


def test_not_even_a_reducer_makes_a_lock_or_a_socket_cross(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = threading.Lock()
    monkeypatch.setitem(copyreg.dispatch_table, type(lock), lambda o: (threading.Lock, ()))
    with mpgort.Runtime(1) as rt, Obliging() as s:
        for o in (lock, s):
            with pytest.raises(mpgort.SerializationError, match="never crosses"):
                rt.spawn(taker, o)


class Holds:
    """Goes by pickle."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return Holds, (self.what,)


def test_a_handle_for_another_runtime_is_said_once_and_where() -> None:
    with mpgort.Runtime(0) as one, mpgort.Runtime(0) as other:
        ch = one.chan()
        text = "a mpgort.Chan cannot cross to another runtime than the one that made it"
        ways = {"": ch, "[0].__self__": [ch.recv], "['a'].what": {"a": Holds(ch)}}
        for path, what in ways.items():
            with pytest.raises(mpgort.SerializationError) as info:
                other.spawn(taker, what)
            assert str(info.value) == f"args[0]{path}: {text}"


class Service:
    def __init__(self, **parts: Any) -> None:
        self.__dict__ |= parts

    def ask(self) -> None:
        pass


def test_a_method_of_an_object_that_holds_a_pool_is_refused_by_the_pools_name() -> None:
    with mpgort.Runtime(0) as rt, mpgort.Executor(1) as ex, mpgort.Pool(1) as pool:
        for what, text in (
            (Service(rt=rt), ".rt: Runtime: TypeError: a Runtime cannot be sent"),
            (Service(pool=pool), ".pool: Pool: NotImplementedError: pool objects cannot be passed"),
            (Service(ex=ex), ".ex: an executor"),
        ):
            with pytest.raises(mpgort.SerializationError) as info:
                rt.spawn(what.ask)
            assert str(info.value).startswith(f"fn.__self__{text}")


# ---- no room -------------------------------------------------------------------------------------


async def waits(gate: Any) -> int:
    await gate.recv()
    return 1


def test_a_full_table_of_goroutines_is_an_error_with_the_figure_and_the_option() -> None:
    with mpgort.Runtime(1, max_goroutines=100) as rt:
        gate = rt.chan()
        handles = []
        with pytest.raises(mpgort.OutOfSharedMemory, match=r"all \d+ .* max_goroutines=") as info:
            for _ in range(200):
                handles.append(rt.spawn(waits, gate))
        assert isinstance(info.value, MemoryError) and 90 <= len(handles) <= 100
        gate.close()
        wait_until("all have ended", lambda: all(h.done() for h in handles))
        assert [h.result(timeout=30) for h in handles] == [1] * len(handles)
        assert rt.spawn(waits, gate).result(timeout=30) == 1
        comes_to_rest(rt._prog)


def test_a_full_heap_is_an_error_of_each_call_and_touches_nothing_stored() -> None:
    with mpgort.Runtime(1, heap_bytes=16 << 20) as rt:
        ch, d = rt.chan(2), shared.dict({"kept": b"kept"}, runtime=rt)
        ch.put(b"kept")
        large, array = b"x" * (20 << 20), np.ones(20 << 17)
        for call in (
            lambda: ch.put(large),
            lambda: ch.put(array),
            lambda: d.set("kept", large),
            lambda: d.cas("kept", b"kept", array),
            lambda: rt.spawn(len, large),
            lambda: rt.spawn(bytes, 20 << 20).result(timeout=30),
            lambda: shared.zeros(20 << 17, runtime=rt),
            lambda: rt.chan(1 << 22),
        ):
            with pytest.raises(mpgort.OutOfSharedMemory, match="heap_bytes"):
                call()
        assert (ch.get(timeout=30), len(ch), d["kept"], len(d)) == (b"kept", 0, b"kept", 1)
        assert rt.spawn(len, b"abc").result(timeout=30) == 3
        comes_to_rest(rt._prog)


def test_arrays_of_ctypes_cross_with_their_type() -> None:
    int_p = ctypes.POINTER(ctypes.c_int)
    sent = [
        (ctypes.c_double * 3)(1, 2, 3),
        ctypes.create_string_buffer(b"abc"),
        ctypes.c_int * 2,
        int_p,
        int_p * 2,
        ctypes.CFUNCTYPE(ctypes.c_int, int_p),
    ]
    with mpgort.Runtime(1) as rt:
        came = rt.spawn(lambda x: x, sent).result(30)
    assert [type(x) for x in came] == [type(x) for x in sent]
    assert all(x is y for x, y in zip(came[2:], sent[2:], strict=True))
    assert list(came[0]) == [1, 2, 3] and came[1].value == b"abc"


def a_type_of_ctypes(which: str) -> object:
    class Local(ctypes.Structure):
        _fields_ = (("n", ctypes.c_int),)

    return {"metaclass": type(ctypes.POINTER(ctypes.c_int)), "local": Local}[which]


@pytest.mark.parametrize(("which", "named"), [("metaclass", "PyCPointerType"), ("local", "Local")])
def test_a_type_of_ctypes_that_no_module_leads_to_is_refused_by_name(
    which: str, named: str
) -> None:
    with mpgort.Runtime(1) as rt:
        for call in (
            lambda: rt.spawn(a_type_of_ctypes, which).result(30),
            lambda: rt.spawn(print, a_type_of_ctypes(which)),
        ):
            with pytest.raises(mpgort.SerializationError, match=f"{named}, a type of ctypes"):
                call()
