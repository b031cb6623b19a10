"""What `__main__` gets after the workers were started runs on them: a notebook's next cell, a line
typed into `python -i`, a function that a script defines late. By value, with what it uses.

A session is typed in: a blank line ends a definition, and nothing else may have one in it."""

from __future__ import annotations

import pytest
from conftest import Programs, Result

METHODS = ["fork", "forkserver", "spawn"]


def lines(r: Result) -> list[str]:
    assert r.status == 0 and "Traceback" not in r.err, r.err[-3000:]
    return r.out.splitlines()


@pytest.mark.parametrize("method", METHODS)
def test_a_session_goes_on_after_its_workers_were_started(program: Programs, method: str) -> None:
    r = program(
        f"""
        import dataclasses, enum, mpgort
        def first(x): return x + 1

        ex = mpgort.Executor(2, start_method="{method}")
        ask = lambda *call: ex.submit(*call).result(30)
        print(1, ask(first, 1))
        K = 100
        def second(x): return first(x) * K

        print(2, ask(second, 1), list(ex.map(second, range(3))))
        def second(x): return first(x) * K + 1

        print(3, ask(second, 1), ask(lambda: second(2)))
        def first(x): return x + 1000

        print(4, ask(second, 1))
        futures = []
        for K in (1, 2, 1): futures.append(ex.submit(second, 0))

        print(5, [f.result(30) for f in futures])
        def fact(n): return 1 if n == 0 else n * fact(n - 1)

        def even(n): return n == 0 or odd(n - 1)

        def odd(n): return n != 0 and even(n - 1)

        print(6, ask(fact, 5), ask(even, 10))
        class Point:
            def __init__(self, x): self.x = x
            def far(self): return Point, self.x * K

        p, was = ask(Point, 3), Point
        print(7, type(p) is Point, ask(p.far) == (Point, 3), ask(isinstance, p, Point))
        print(8, Point.far.__globals__ is globals())
        for K in (10, 20, 10): print(9, ask(p.far)[1])

        class Point(Point):
            pass

        print(10, type(ask(Point, 1)) is Point, ask(p.far)[0] is Point, type(ask(was, 1)) is was)
        @dataclasses.dataclass
        class D:
            a: int

        class Slots:
            __slots__ = ("a", "__b")
            def __init__(self, a): self.a = self.__b = a
            def both(self): return self.a + self.__b

        class Pair(__import__("typing").NamedTuple):
            a: int

        s = ask(lambda: Slots(Pair(2).a))
        print("slots", type(s) is Slots, s.both(), ask(s.both), ask(hasattr, s, "__dict__"))
        Color = enum.Enum("Color", "RED")
        print(11, ask(lambda d: D(d.a + 1), D(1)) == D(2), ask(lambda: Color.RED) is Color.RED)
        class Failure(Exception):
            def __init__(self, a, b): self.a = a

        def fails(): raise Failure(1, 2)

        print(12, type(ex.submit(fails).exception(30)) is Failure)
        @__import__("functools").lru_cache(7)
        def cached(x): return x + K

        print(13, ask(cached, 1), ask(lambda: (cached(2), cached.cache_parameters()["maxsize"])))
        with mpgort.Pool(2, context="{method}") as pool: print(14, pool.map(second, range(2)))

        ex.shutdown()
        """,
        session=True,
    )
    assert lines(r) == [
        "1 2",
        "2 200 [100, 200, 300]",
        "3 201 301",
        "4 100101",
        "5 [1001, 2001, 1001]",
        "6 120 True",
        "7 True True True",
        "8 True",
        "9 30",
        "9 60",
        "9 30",
        "10 True True True",
        "slots True 4 4 False",
        "11 True True",
        "12 True",
        "13 11 (12, 7)",
        "14 [10001, 10011]",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_coroutine_of_a_later_cell_parks_and_moves(program: Programs, method: str) -> None:
    r = program(
        f"""
        import os, signal, mpgort
        rt = mpgort.Runtime(2, start_method="{method}")
        print(rt.spawn(abs, -1).result(30))
        STEP = 2
        class Sum:
            def __init__(self): self.n, self.pids = 0, []
            async def add(self, n):
                self.pids.append(os.getpid())
                await mpgort.gosched()
                self.n += n

        async def steps(c):
            async for i in c:
                await mpgort.gosched()
                yield STEP

        async def many(c, out, f):
            s, g = Sum(), (lambda x: x * STEP)
            async for i in steps(c):
                await s.add(f(g(i)))
                await out.send(s.pids[-1])
            return s

        c, out = rt.chan(), rt.chan()
        h = rt.spawn(many, c, out, lambda x: x + 1)
        for i in range(3):
            c.put(i)
            pid = out.get(30)
            while h.status() != "chan receive": pass
            os.kill(pid, signal.SIGKILL)

        c.close()
        s = h.result(30)
        print(s.n, len(set(s.pids)), type(s) is Sum)
        async def asked(c, out):
            async for f in c: await out.send(f(1))

        c = rt.chan(8)
        rt.go(asked, c, out)
        for K in range(3): c.put(lambda x: x + K)

        print([out.get(30) for _ in range(3)])
        async def kept(): await mpgort.gosched(); return STEP

        print(rt.spawn(kept, durable=True, retries=1).result(30), rt.shutdown(timeout=30))
        """,
        env={"MPGORT_MIGRATE": "always"},
        session=True,
    )
    assert lines(r) == ["1", "15 3 True", "[1, 2, 3]", "2 True"]


@pytest.mark.parametrize("method", METHODS)
def test_what_an_initializer_of_a_session_sets_is_there_for_tasks(
    program: Programs, method: str
) -> None:
    r = program(
        f"""
        import os, signal, mpgort
        main, model, cache, e = 7, None, {{}}, 2.5
        class Net:
            def __init__(self, k): self.k = k
            def __call__(self, x): return x * self.k

        def load(k): return Net(k)

        def setup(k):
            global model, extra
            model, extra = load(k), "set"
            cache["e"] = e, main

        def task(x): return model(x), cache, extra

        rt = mpgort.Runtime(1, start_method="{method}", initializer=setup, initargs=(3,))
        ask = lambda *call: rt.spawn(*call).result(30)
        print(1, *ask(task, 2))
        async def parks(x): await mpgort.gosched(); return model(x), type(model) is Net

        n = ask(load, 4)
        print(2, *ask(parks, 2), type(n) is Net, n(1), ask(n, 2), ask(isinstance, n, Net))
        model = Net(100)
        print(3, *ask(task, 1))
        def load(k): return k

        class Net(Net): pass

        print(4, ask(load, 4), type(ask(Net, 4)) is Net, type(ask(lambda: n)) is type(n))
        os.kill(ask(os.getpid), signal.SIGKILL)
        print(5, *ask(task, 2))
        """,
        session=True,
    )
    assert lines(r) == [
        "1 6 {'e': (2.5, 7)} set",
        "2 6 True True 4 8 True",
        "3 100 {'e': (2.5, 7)} set",
        "4 4 True True",
        "5 200 {'e': (2.5, 7)} set",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_that_crosses_by_value_sets_the_globals_of_its_script(
    program: Programs, method: str
) -> None:
    r = program(f"""
        import mpgort

        model, own = None, []

        def get():
            return model, own

        def main():
            def setup():
                global model
                model = "loaded"
                own.append(1)

            own.append("only here")
            with mpgort.Executor(1, start_method="{method}", initializer=setup) as ex:
                print(*ex.submit(get).result())

        if __name__ == "__main__":
            main()
        """)
    had = ["only here"] if method == "fork" else []
    assert lines(r) == [f"loaded {[*had, 1]}"]


@pytest.mark.parametrize("method", METHODS)
def test_a_script_defines_functions_after_the_start(program: Programs, method: str) -> None:
    r = program(f"""
        import threading
        import mpgort

        def early(x):
            return helper(x) if x else model

        def helper(x):
            return x + 1

        def mentions():
            return "later" in globals() and later

        def begin():
            global model
            model = "loaded"

        model = None

        def main():
            global helper, late, later, again
            with mpgort.Executor(2, start_method="{method}", initializer=begin) as ex:
                print(ex.submit(early, 0).result(), ex.submit(early, 1).result())
                def helper(x):
                    return x + 100
                print(ex.submit(early, 1).result(), ex.submit(early, 0).result())
                exec("def late(x): return (x, model, FACTOR, helper(x))", globals())
                globals()["FACTOR"] = 7
                print(ex.submit(late, 1).result())
                later = threading.Lock()
                print(ex.submit(mentions).result())
                def again():
                    return later
                error = ex.submit(again).exception()
                print(type(error).__name__, error)

        if __name__ == "__main__":
            main()
        """)
    assert lines(r) == [
        "loaded 2",
        "101 loaded",
        "(1, 'loaded', 7, 101)",
        "False",
        "SerializationError fn.__globals__['later']: a lock (_thread.lock) never crosses",
    ]


def test_a_console_of_a_program_s_own_has_its_functions_run_and_move(program: Programs) -> None:
    r = program(
        """
        import code
        import mpgort

        console = code.InteractiveConsole()
        for line in '''
        import mpgort, os
        ex = mpgort.Executor(2)
        N = 20
        def f(x): return x * N

        async def pids():
            seen = set()
            for i in range(N): seen.add(os.getpid()); await mpgort.sleep(0.0001)
            return len(seen) > 1

        print(ex.submit(f, 2).result(30), any([ex.submit(pids).result(30) for _ in range(5)]))
        ex.shutdown()
        '''.splitlines():
            console.push(line.removeprefix("        "))
        """,
        env={"MPGORT_MIGRATE": "always"},
    )
    assert lines(r) == ["40 True"]


def test_after_many_versions_of_a_global_a_goroutine_is_at_home_and_the_table_full_enough(
    program: Programs,
) -> None:
    r = program(
        """
        import mpgort, mpgort._byvalue
        mpgort._byvalue.MOVABLE_MOST = 10
        rt = mpgort.Runtime(2)
        async def three(x):
            for _ in range(3): await mpgort.gosched()
            return x + Z

        def live(): return rt.stats()["live_blocks"]

        seen = []
        for Z in range(120):
            hs = [rt.spawn(three, 1) for _ in range(2)]
            assert [h.result(30) for h in hs] == [Z + 1] * 2
            del hs
            if Z >= 60: seen.append(live())

        print(max(seen) < 60, mpgort.run(three, 1, procs=0) == Z + 1)
        """,
        env={"MPGORT_MIGRATE": "always"},
        session=True,
    )
    assert lines(r) == ["True True"]


@pytest.mark.usefixtures("auto")
def test_globals_that_are_shared_or_large_come_along_and_keep_their_goroutine_at_home(
    program: Programs,
) -> None:
    r = program(
        """
        import mpgort, numpy as np
        rt = mpgort.Runtime(2)
        rt.spawn(abs, 1).result(30)
        ch, a = rt.chan(), np.arange(100_000)
        async def feed(n):
            for i in range(n): await ch.send(int(a[i]))
            await mpgort.sleep(1000)

        h = rt.spawn(feed, 3)
        print([ch.get(30) for _ in range(3)])
        while "pinned" not in rt.stack(): pass

        print("hold what is shared: pass it as an argument" in rt.stack())
        h.kill(), rt.shutdown(timeout=30)
        """,
        session=True,
    )
    out = lines(r)
    assert out == ["1", "[0, 1, 2]", "True", "(True, True)"]


@pytest.mark.parametrize("method", METHODS)
def test_code_of_a_module_that_was_reloaded_is_refused_by_name_until_there_are_new_workers(
    program: Programs, method: str
) -> None:
    """Functions, methods and classes; in calls, in pickles; new objects under the old names, and
    new code in the old functions, as IPython's autoreload has it."""
    r = program(f"""
        import importlib, pathlib, sys
        import mpgort

        there = pathlib.Path(__file__).with_name("edited.py")
        SOURCE = '''
        def same(): return "same"
        def f(): return "OLD"
        async def co(): return "OLD"
        named = lambda: "OLD"
        class A:
            def say(self): return "OLD"
        class Holds:
            def __init__(self, f): self.f = f
            def __reduce__(self): return Holds, (self.f,)
        '''

        def write(word):
            there.write_text(SOURCE.replace("\\n        ", "\\n").replace("OLD", word))

        def says(a):
            return a.say()

        def holds(h):
            return h.f()

        def calls(m):
            return [(m.same,), (m.f,), (m.co,), (m.named,), (m.A().say,), (says, m.A()),
                    (holds, m.Holds(m.f))]

        def ask(pool, call):
            try:
                return pool.spawn(*call).result(30)
            except mpgort.CodeMismatch as e:
                return str(e).partition(": process")[0]

        def main():
            sys.dont_write_bytecode = True
            write("old")
            import edited
            old = edited.f
            with mpgort.Runtime(1, start_method="{method}") as rt:
                print(*[ask(rt, c) for c in calls(edited)])
                write("newer")
                importlib.reload(edited)
                print(*[ask(rt, c) for c in calls(edited)])
                print(ask(rt, (old,)))
                if "{method}" == "spawn":
                    rt.recycle()
                    print(*[ask(rt, c) for c in calls(edited)])
            with mpgort.Runtime(1, start_method="{method}") as rt:
                print(*[ask(rt, c) for c in calls(edited)])
                before = edited.f
                write("newest")
                importlib.reload(edited)
                before.__code__, edited.f = edited.f.__code__, before
                print(*[ask(rt, c) for c in calls(edited)][:2])

        if __name__ == "__main__":
            main()
        """)
    old, newer = (["same", *[word] * 6] for word in ("old", "newer"))
    refused = ["same", "edited.f", "edited.co", "edited.named", *["edited.A.say"] * 2, "edited.f"]
    said = [line.split() for line in lines(r)]
    again = [newer] if method == "spawn" else []
    assert said == [old, refused, ["old"], *again, newer, ["same", "edited.f"]]


@pytest.mark.parametrize("method", METHODS)
def test_who_refers_to_a_module_that_was_reloaded_is_refused_until_there_are_new_workers(
    program: Programs, method: str
) -> None:
    """Functions that the workers know, lambdas, closures, methods, and the module itself; it is
    reloaded, or taken out of sys.modules and imported again; a submodule, too."""
    r = program(f"""
        import importlib, pathlib, sys
        import mpgort

        here = pathlib.Path(__file__).parent

        def write(word):
            (here / "edited.py").write_text(f"def same(): return 's'\\ndef f(): return {{word!r}}")
            (here / "package").mkdir(exist_ok=True)
            (here / "package" / "sub.py").write_text(f"def f(): return {{word!r}}")

        if __name__ == "__main__":
            sys.dont_write_bytecode = True
            write("old")
        import edited, package.sub

        def known(): return edited.f()
        def uses_known(): return known()
        async def co():
            await mpgort.sleep(0.001)
            return edited.f()
        class K:
            def m(self): return edited.f()
        def takes(m): return m.f()
        def sub(): return package.sub.f()

        def calls():
            m = edited
            async def local():
                await mpgort.sleep(0.001)
                return m.f()
            return [(known,), (uses_known,), (co,), (K().m,), (takes, m), (lambda: edited.f(),),
                    (lambda: m.f(),), (local,), (sub,), (lambda: package.sub.f(),)]

        def ask(rt, *call):
            try:
                return rt.spawn(*call).result(30)
            except mpgort.CodeMismatch as e:
                return str(e).partition(": process")[0]

        def main():
            with mpgort.Runtime(1, start_method="{method}") as rt:
                print(*[ask(rt, *c) for c in calls()])
                write("newer")
                importlib.reload(edited), importlib.reload(package.sub)
                print(*[ask(rt, *c) for c in calls()])
                if "{method}" == "spawn":
                    rt.recycle()
                    print(*[ask(rt, *c) for c in calls()])
                else:
                    write("old")
                    importlib.reload(edited), importlib.reload(package.sub)
                    print(*[ask(rt, *c) for c in calls()])
                write("newest")
                del sys.modules["edited"]
                globals()["edited"] = importlib.import_module("edited")
                print(*[ask(rt, *c) for c in calls()][:8])

        if __name__ == "__main__":
            main()
        """)
    said = [line.split() for line in lines(r)]
    refused = ["edited.f"] * 8 + ["package.sub.f"] * 2
    again = "newer" if method == "spawn" else "old"
    assert said == [["old"] * 10, refused, [again] * 10, refused[:8]]
