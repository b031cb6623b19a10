"""The rules of mpgort/_bytecode.py against all the bytecode that there is."""

from __future__ import annotations

import inspect
import sysconfig
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import continuation_bodies as bodies
import pytest

from mpgort import _bytecode


def _stdlib_generators() -> Iterator[types.CodeType]:
    def within(code: types.CodeType) -> Iterator[types.CodeType]:
        if code.co_flags & (
            inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
        ):
            yield code
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                yield from within(const)

    stdlib = Path(sysconfig.get_path("stdlib"))
    files = [
        *stdlib.glob("*.py"),
        *stdlib.glob("asyncio/*.py"),
        *stdlib.glob("test/test_[cgpt]*.py"),
    ]
    for file in [*files, *Path(bodies.__file__).parent.glob("*.py")]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from within(compile(file.read_bytes(), str(file), "exec", dont_inherit=True))


def test_every_opcode_in_generators_of_the_stdlib_has_a_rule_with_the_effect_that_dis_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An opcode without a rule blurs what stands below it: then hostile bytes may put anything
    there. (PRECALL and CALL of 3.11 share one effect; dis counts what RETURN_GENERATOR pushes for
    the caller.)"""
    gaps, wrong = set[str](), set[tuple[str, bool]]()
    step = _bytecode._step

    def checked(ins: Any, s: Any, jump: bool) -> Any:
        after = step(ins, s, jump)
        effect = len(after.stack) - len(s.stack)
        if ins.opname not in ("PRECALL", "CALL", "RETURN_GENERATOR"):
            if effect != _bytecode._effect(ins, jump):
                wrong.add((ins.opname, jump))
        return after

    def blurred(name: str, *args: Any) -> Any:
        gaps.add(name)
        raise _bytecode._Unknown(name)

    monkeypatch.setattr(_bytecode, "_step", checked)
    monkeypatch.setattr(_bytecode, "_blur", blurred)
    codes = list(_stdlib_generators())
    unknown = [code for code in codes if not _bytecode.analyse(code)]
    assert len(codes) > 400
    assert (gaps, wrong, unknown) == (set(), set(), [])
