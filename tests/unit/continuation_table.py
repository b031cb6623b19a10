"""All hand-written bodies by name, and which of them a continuation may refuse."""

from __future__ import annotations

import inspect

import continuation_bodies
import continuation_bodies_hold
import continuation_bodies_raise

_MODULES = (continuation_bodies, continuation_bodies_hold, continuation_bodies_raise)
BODIES = {
    name: fn
    for module in _MODULES
    for name, fn in vars(module).items()
    if inspect.iscoroutinefunction(fn) and not name.startswith("_")
}
MAY_PIN = {name for module in _MODULES for name in module.MAY_PIN}
