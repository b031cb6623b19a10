"""Ports of Go's runtime/crash_test.go: how a program ends, and with which words.

Where the original reads the output of a child that has died, the exception that `run` raises is
looked at; what Python prints of it, and the exit status, is looked at once, in a child."""

import re
import traceback
from pathlib import Path

import pytest
from conftest import Programs

import mpgort
from mpgort import Chan, Deadlock, GoroutinePanic, chan, go, goexit, goid, gosched, sleep, spawn


@pytest.fixture(params=[0, 1, 3], ids=lambda n: f"procs={n}")
def procs(request: pytest.FixtureRequest) -> int:
    return request.param


# ---- deadlock --------------------------------------------------------------------------------


async def receive(ch: Chan) -> object:
    return await ch.recv()


async def receive_deeper(ch: Chan) -> object:
    return await receive(ch)


async def receive_for_ever() -> None:
    await chan().recv()


async def all_asleep() -> None:
    go(receive_deeper, chan())
    h = spawn(receive, chan())
    while h.status() != "chan receive":
        await gosched()
    await chan().send(1)


def test_a_program_in_which_nobody_can_run_ends_with_gos_words(procs: int) -> None:
    """Go TestSimpleDeadlock."""
    with pytest.raises(Deadlock, match="^all goroutines are asleep - deadlock!\n") as e:
        mpgort.run(receive_for_ever, procs=procs)
    assert "goroutine 1 [chan receive]:\n" in str(e.value)


def test_a_deadlock_lists_every_goroutine_with_reason_and_frames(procs: int) -> None:
    """Go traceback.go: `goroutine 18 [chan receive]:`, then function and file:line."""
    with pytest.raises(Deadlock) as e:
        mpgort.run(all_asleep, procs=procs)
    text = str(e.value)
    assert text.count("goroutine ") - text.count("created by ") == 3, text
    assert "goroutine 1 [chan send]:\nall_asleep(...)\n" in text
    kept = r"(, pinned: MPGORT_MIGRATE=never)?"  # then a dump says why it is at home
    assert len(re.findall(rf"\[chan receive{kept}\]:\nreceive\(\.\.\.\)\n", text)) == 2
    assert "receive_deeper(...)\n" in text
    first = all_asleep.__code__.co_firstlineno
    for line in (first + 1, first + 2):
        assert f"created by all_asleep in goroutine 1\n\t{__file__}:{line}" in text
    assert f"\t{__file__}:{receive.__code__.co_firstlineno + 1}\n" in text


async def asleep_without_a_frame() -> None:
    go(chan().recv)
    await chan().send(1)


def test_a_goroutine_without_a_frame_of_its_own_shows_none(procs: int) -> None:
    with pytest.raises(Deadlock) as e:
        mpgort.run(asleep_without_a_frame, procs=procs)
    assert re.search(
        r"goroutine \d+ \[chan receive.*\]:\ncreated by asleep_without_a_frame in goroutine 1\n",
        str(e.value),
    )


async def deadlock_after_work(n: int) -> None:
    out = chan()
    for i in range(n):
        go(out.send, i)
    for _ in range(n):
        await out.recv()
    await out.recv()


def test_a_deadlock_is_found_after_much_work(procs: int) -> None:
    with pytest.raises(Deadlock, match="all goroutines are asleep"):
        mpgort.run(deadlock_after_work, 2000, procs=procs)


async def wake_later(ch: Chan, seconds: float) -> None:
    await sleep(seconds)
    await ch.send("in time")


async def wait_for_a_timer() -> str:
    ch = chan()
    go(wake_later, ch, 0.3)
    text: str = await ch.recv()
    return text


def test_a_pending_timer_is_no_deadlock(procs: int) -> None:
    """Go proc.go checkdead: with a timer pending the program waits."""
    assert mpgort.run(wait_for_a_timer, procs=procs) == "in time"


# ---- goexit ----------------------------------------------------------------------------------


def count_to_ten() -> None:
    for _ in range(10):
        pass


async def main_goexit() -> None:
    go(count_to_ten)
    go(count_to_ten)
    goexit()


def test_goexit_in_main_lets_the_others_end_and_then_is_a_deadlock(procs: int) -> None:
    """Go TestGoexitCrash."""
    text = "no goroutines (main called runtime.Goexit) - deadlock!"
    with pytest.raises(Deadlock) as e:
        mpgort.run(main_goexit, procs=procs)
    assert str(e.value).startswith(text)


async def leave_by_goexit(ch: Chan) -> None:
    try:
        goexit()
    except Exception as e:  # recover() is nil during Goexit
        await ch.send(repr(e))
    finally:
        await ch.send("finally")


async def watch_goexit() -> tuple[str, object]:
    ch = chan()
    h = spawn(leave_by_goexit, ch)
    return await ch.recv(), await h


def test_goexit_runs_finally_and_is_no_exception(procs: int) -> None:
    """Go TestGoexitDefer. The handle of a goroutine that has left yields None."""
    assert mpgort.run(watch_goexit, procs=procs) == ("finally", None)


# ---- panics ----------------------------------------------------------------------------------


async def fail_deep(text: str) -> None:
    await gosched()
    raise LookupError(text)


async def fail(text: str) -> None:
    await fail_deep(text)


async def panic_in_a_goroutine(parked: int) -> None:
    for _ in range(parked):
        go(receive_for_ever)
    go(fail, "lost")
    await chan().recv()


@pytest.mark.parametrize("parked", [0, 100])
def test_a_panic_ends_the_program_and_names_goroutine_and_frames(procs: int, parked: int) -> None:
    """Go panics end the program, whoever else is parked or running."""
    with pytest.raises(GoroutinePanic) as e:
        mpgort.run(panic_in_a_goroutine, parked, procs=procs)
    panic = e.value
    assert panic.goid == parked + 2
    assert panic.reason == "LookupError: lost"
    assert isinstance(panic.__cause__, LookupError)
    assert panic.__cause__.args == ("lost",)
    text = str(panic)
    assert text.startswith(f"panic: LookupError: lost\n\ngoroutine {parked + 2} [running]:\n")
    assert "in fail\n" in text and "in fail_deep\n" in text


async def main_fails() -> None:
    assert goid() == 1
    await fail("in main")


def test_main_is_goroutine_1_and_its_exception_is_its_own(procs: int) -> None:
    """Go TestMainGoroutineID; main's exception is raised as it is, not as a panic."""
    with pytest.raises(LookupError, match="in main"):
        mpgort.run(main_fails, procs=procs)


@pytest.mark.parametrize("what", [None, 3, "text", chan])
def test_go_of_what_cannot_be_started_is_a_type_error_at_the_call(what: object) -> None:
    """Go TestGoNil ("go of nil func value")."""

    async def main() -> str:
        try:
            go(what)
        except TypeError as e:
            return str(e)
        return "started"

    if what is chan:
        assert mpgort.run(main, procs=1) == "started"  # a plain function, run to completion
    else:
        assert mpgort.run(main, procs=1) != "started"


def plain_failure() -> None:
    raise ZeroDivisionError("plain")


async def panic_of_a_plain_function() -> None:
    go(plain_failure)
    await chan().recv()


def test_a_plain_function_panics_like_a_coroutine(procs: int) -> None:
    with pytest.raises(GoroutinePanic, match="ZeroDivisionError: plain"):
        mpgort.run(panic_of_a_plain_function, procs=procs)


# ---- exceptions through handles --------------------------------------------------------------


class Odd(Exception):
    """With a constructor that takes other arguments than `args` has."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail

    def __reduce__(self) -> tuple[object, ...]:
        return make_odd, (self.code, self.detail)


def make_odd(code: int, detail: str) -> Odd:
    return Odd(code, detail=detail)


async def fail_oddly() -> None:
    await gosched()
    raise Odd(7, detail="far away")


async def await_failures() -> list[BaseException]:
    caught: list[BaseException] = []
    for fn, args in ((fail, ("by handle",)), (fail_oddly, ()), (plain_failure, ())):
        try:
            await spawn(fn, *args)
        except Exception as e:
            caught.append(e)
    return caught


def test_an_exception_comes_through_a_handle_with_its_type_and_remote_frames(procs: int) -> None:
    lookup, odd, plain = mpgort.run(await_failures, procs=procs)
    assert isinstance(lookup, LookupError) and lookup.args == ("by handle",)
    assert isinstance(odd, Odd) and (odd.code, odd.detail) == (7, "far away")
    assert isinstance(plain, ZeroDivisionError)
    text = "".join(traceback.format_exception(lookup))
    assert "in fail_deep\n" in text and "in await_failures\n" in text


async def answer() -> int:
    await gosched()
    return 42


async def await_it(h: mpgort.Goroutine) -> object:
    return await h


async def many_waiters(n: int) -> list[object]:
    h = spawn(answer)
    waiters = [spawn(await_it, h) for _ in range(n)]
    return [await w for w in waiters] + [await h, await h]


def test_a_handle_sent_to_many_goroutines_gives_each_of_them_the_value(procs: int) -> None:
    assert mpgort.run(many_waiters, 50, procs=procs) == [42] * 52


async def handle_of_a_failure(n: int) -> list[str]:
    h = spawn(fail, "for all")
    waiters = [spawn(await_it, h) for _ in range(n)]
    texts = []
    for w in waiters:
        try:
            await w
        except LookupError as e:
            texts.append(str(e))
    return texts


def test_a_failure_is_raised_in_every_waiter(procs: int) -> None:
    assert mpgort.run(handle_of_a_failure, 20, procs=procs) == ["for all"] * 20


# ---- what cannot cross -----------------------------------------------------------------------


class Held:
    def __init__(self, conn: object) -> None:
        self.conn = conn


async def send_unsendable(path: str) -> str:
    ch = chan(1)
    with open(path) as f:
        try:
            await ch.send({"where": [1, f]})
        except mpgort.SerializationError as e:
            return f"{len(ch)} {e}"
    return "sent"


async def spawn_unsendable(path: str) -> str:
    with open(path) as f:
        try:
            spawn(receive, Held(f))
        except mpgort.SerializationError as e:
            return str(e)
    return "spawned"


def test_a_value_that_cannot_cross_fails_at_the_call_that_sends_it(
    tmp_path: Path, procs: int
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    text = mpgort.run(send_unsendable, str(path), procs=procs)
    assert text.startswith("0 "), text  # nothing has been sent
    assert "where" in text and "[1]" in text, text
    text = mpgort.run(spawn_unsendable, str(path), procs=procs)
    assert "conn" in text, text


# ---- the end of a process --------------------------------------------------------------------

CHILD = """
import mpgort, sound, sys
from mpgort import chan, go

async def bad():
    raise LookupError("lost")

async def parked(ch):
    await ch.recv()

async def main(how):
    for _ in range(10):
        go(parked, chan())
    if how == "panic":
        go(bad)
    await chan().recv()

if __name__ == "__main__":
    sound.at_the_end()
    mpgort.run(main, sys.argv[1], procs=2)
"""


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("panic", ["GoroutinePanic: panic: LookupError: lost", "in bad"]),
        ("deadlock", ["Deadlock: all goroutines are asleep - deadlock!", "parked(...)"]),
    ],
)
def test_a_program_that_fails_prints_it_and_ends_with_1(
    program: Programs, how: str, words: list[str]
) -> None:
    done = program(CHILD, how)
    assert done.status == 1
    for word in [*words, "\nsound\n"]:
        assert word in "\n" + done.err
