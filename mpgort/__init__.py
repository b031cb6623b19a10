"""mpgort: Go's goroutine runtime for Python, over processes instead of threads.

Layout, in order of dependence (imports go left only):
_platform, _errors | _buffer, _byvalue, _bytecode, _code, _exc, _pickle | _core | _segment,
_traceback, _trace, _m, _keeper | runtime, sync, context, _group, _queue | _service, _options |
_host | shared, _aio, metrics | _run | _engine, _job, _executor, _pool, joblib, dask | _monitor,
_doctor, demos, cli. (What C calls, and what only a name in a signature needs, is imported late.)
"""

from mpgort import _platform as _platform  # refuses what cannot work; first
from mpgort import _traceback as _traceback  # gives _core its texts
from mpgort import context as context
from mpgort import runtime as runtime
from mpgort import shared as shared
from mpgort import sync as sync
from mpgort._core import Chan as Chan
from mpgort._core import Goroutine as Goroutine
from mpgort._core import Group as Group
from mpgort._core import Ticker as Ticker
from mpgort._core import Timer as Timer
from mpgort._core import after as after
from mpgort._core import after_func as after_func
from mpgort._core import chan as chan
from mpgort._core import default as default
from mpgort._core import go as go
from mpgort._core import goexit as goexit
from mpgort._core import goid as goid
from mpgort._core import gomaxprocs as gomaxprocs
from mpgort._core import gosched as gosched
from mpgort._core import lock_os_thread as lock_os_thread
from mpgort._core import nilchan as nilchan
from mpgort._core import num_goroutine as num_goroutine
from mpgort._core import select as select
from mpgort._core import sleep as sleep
from mpgort._core import spawn as spawn
from mpgort._core import unlock_os_thread as unlock_os_thread
from mpgort._errors import BadContinuation as BadContinuation
from mpgort._errors import Cancelled as Cancelled
from mpgort._errors import ChanError as ChanError
from mpgort._errors import Closed as Closed
from mpgort._errors import CodeMismatch as CodeMismatch
from mpgort._errors import Deadlock as Deadlock
from mpgort._errors import GoroutinePanic as GoroutinePanic
from mpgort._errors import Killed as Killed
from mpgort._errors import MDied as MDied
from mpgort._errors import OutOfSharedMemory as OutOfSharedMemory
from mpgort._errors import OwnerDied as OwnerDied
from mpgort._errors import SerializationError as SerializationError
from mpgort._errors import SyncError as SyncError
from mpgort._errors import UnsupportedPlatform as UnsupportedPlatform
from mpgort._executor import Executor as Executor
from mpgort._group import to_thread as to_thread
from mpgort._pool import Pool as Pool
from mpgort._run import Runtime as Runtime
from mpgort._run import run as run
