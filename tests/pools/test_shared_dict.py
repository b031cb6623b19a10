"""mpgort.shared.dict: one dict for all who have it, each call one step."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from conftest import large_bytes, wait_until

import mpgort
from mpgort import gosched, shared, spawn

BIG = 100_000  # doubles: above the 64 KiB from which buffers are shared


def test_a_dict_is_one_for_all_who_have_it(rt: mpgort.Runtime) -> None:
    d = shared.dict({"a": 1})

    def plain(d: Any) -> Any:
        d["b"] = [2, d["a"]]
        return d

    async def goroutine(d: Any) -> int:
        d[b"b"] = 3  # another key than "b"
        await gosched()
        return len(d)

    assert rt.spawn(plain, d).result() is d
    assert rt.spawn(goroutine, d).result() == 3
    assert sorted(d.items(), key=str) == [("a", 1), ("b", [2, 1]), (b"b", 3)]
    assert (repr(d), bool(d), bool(shared.dict())) == ("<mpgort.shared.dict of 3>", True, False)


def test_a_dict_does_what_a_dict_does(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict([(f"k{i}", i) for i in range(100)])
    assert (len(d), d["k7"], d.get("k7"), d.get("no"), d.get("no", 5)) == (100, 7, 7, None, 5)
    assert "k7" in d and b"k7" not in d and "no" not in d
    assert sorted(d) == sorted(d.keys()) == sorted(f"k{i}" for i in range(100))
    assert sorted(d.values()) == list(range(100))
    for key in d:  # the keys there were
        del d[key]
    assert len(d) == 0 and d.items() == []
    d.set("x", None)
    assert "x" in d and d["x"] is None
    assert (d.setdefault("x", 1), d.setdefault("y", 1), d.setdefault("y", 2)) == (None, 1, 1)
    assert (d.pop("y"), d.pop("y", 3), d.delete("x"), d.delete("x")) == (1, 3, True, False)
    for missing in (lambda: d["z"], lambda: d.pop("z"), lambda: d.__delitem__("z")):
        with pytest.raises(KeyError, match="'z'"):
            missing()
    d[np.str_("n")] = 1  # equal to "n", so it is that key
    assert d["n"] == 1 and type(d.keys()[0]) is str
    d[""] = d["\ud800"] = d["ß" * 100_000] = 2
    assert d[""] == d["\ud800"] == d["ß" * 100_000] == 2


@pytest.mark.parametrize("key", [1, None, 2.5, ("a", 1), bytearray(b"a")], ids=repr)
def test_another_key_than_str_or_bytes_is_refused_by_name(rt: mpgort.Runtime, key: Any) -> None:
    d: Any = shared.dict()
    name = type(key).__name__
    for call in (
        lambda: d.get(key),
        lambda: d[key],
        lambda: d.set(key, 1),
        lambda: d.cas(key, 1, 2),
        lambda: d.setdefault(key, 1),
        lambda: d.delete(key),
        lambda: d.pop(key, None),
        lambda: key in d,
        lambda: shared.dict({key: 1} if name != "bytearray" else [(key, 1)]),
    ):
        with pytest.raises(TypeError, match=f"a key is str or bytes, not {name}: "):
            call()
    assert len(d) == 0


def test_a_value_that_cannot_cross_changes_nothing(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict({"a": 1})
    for call in (
        lambda: d.set("a", open("/dev/null")),
        lambda: d.cas("a", 1, open("/dev/null")),
        lambda: d.setdefault("b", open("/dev/null")),
    ):
        with pytest.raises(mpgort.SerializationError, match="an open file"):
            call()
    assert d.items() == [("a", 1)]


def test_cas_compares_as_python_does(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict({"n": 1, "l": [1, [2]], "a": np.ones(BIG), "x": float("nan")})
    assert d.cas("n", 1.0, 2) and not d.cas("n", 1, 3) and d["n"] == 2
    assert d.cas("l", [1, [2]], []) and d["l"] == []
    assert not d.cas("a", np.ones(BIG - 1), 0) and not d.cas("a", 1, 0)
    assert d.cas("a", np.ones(BIG), "b") and d["a"] == "b"
    assert not d.cas("x", float("nan"), 0)
    assert not d.cas("no", None, 1) and "no" not in d

    class Bad:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        d.cas("n", Bad(), 3)
    assert d["n"] == 2


def add(d: Any, key: str, n: int) -> None:
    for _ in range(n):
        while not d.cas(key, old := d[key], (old[0] + 1, "x" * 100)):
            pass


async def counts(n: int) -> Any:
    d = shared.dict({"n": (0, "")})
    for h in [spawn(add, d, "n", n) for _ in range(4)]:
        await h
    return d["n"][0]


def test_of_counts_by_cas_none_is_lost(run: Any) -> None:
    assert run(counts, 50) == 200


def test_a_large_array_in_a_dict_is_written_once(rt: mpgort.Runtime) -> None:
    d: Any = shared.dict({"a": np.ones(10 * BIG)})
    once = large_bytes(rt)
    a, b = d["a"], d["a"]
    d["again"] = a
    d["part"] = a[5:]
    assert large_bytes(rt) == once
    assert not a.flags.writeable and a.sum() == b.sum() == 10 * BIG
    ours = shared.zeros(3)
    d["ours"] = ours
    ours[1] = 5
    assert d["ours"].tolist() == [0, 5, 0]
    del d["a"], d["again"], d["part"]
    assert a[-1] == 1  # its reader has it
    del a, b, ours


def test_a_dict_goes_with_its_last_handle(rt: mpgort.Runtime) -> None:
    async def hold(d: Any, gate: Any) -> int:
        await gate.recv()
        return int(d["a"].sum())

    gate = rt.chan()
    d: Any = shared.dict({"a": np.ones(10 * BIG), "b": "x" * 1000})
    h = rt.spawn(hold, d, gate)
    del d
    gate.put(None)
    assert h.result() == 10 * BIG
    del h
    wait_until("the array in it is freed", lambda: large_bytes(rt) == 0)


def test_a_dict_is_of_one_runtime_and_outlives_it() -> None:
    with pytest.raises(RuntimeError, match="no runtime"):
        shared.dict()
    with mpgort.Runtime(0) as other:
        d = shared.dict({"a": 1}, runtime=other)
        data = pickle.dumps(d)
        assert pickle.loads(data) == d
    with pytest.raises(pickle.UnpicklingError, match="a program that has ended"):
        pickle.loads(data)
    assert d["a"] == 1  # what is held is there, also when the runtime has ended
