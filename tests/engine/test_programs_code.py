"""No code of the program's runs on the engine's thread: finalizers, weakrefs, gc.callbacks, hooks, trace functions.

Each program runs in a process of its own with the collector's threshold at one object, so that a collection comes with
nearly every allocation, whichever thread makes it.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import traceback
import weakref
from _thread import get_ident
from collections.abc import Iterator
from typing import Any, cast

import pytest

import utpsocket
from utpsocket.engine import engine, fault_reports, shutdown
from utpsocket.engine.interpreter import garbage_collector
from utpsocket.engine.loop import Loop

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

PRELUDE = """
import faulthandler, gc, os, socket, sys, threading, weakref
from _thread import get_ident
import utpsocket
from utpsocket.engine import running_engine, shutdown

def echo_server():
    "The address of a server in a process of its own: its threads must not meet our finalizers."
    reading, writing = os.pipe()
    ours_only = os.pipe()
    if not os.fork():
        os.close(ours_only[1])
        listener = utpsocket.create_server(("127.0.0.1", 0))
        def echo(conn):
            with conn:
                try:
                    while data := conn.recv(65536):
                        conn.sendall(data)
                except ConnectionError:
                    pass  # our parent leaves by os._exit(), which may be before its FIN is acked
        def accept():
            while True:
                threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
        threading.Thread(target=accept, daemon=True).start()
        os.write(writing, b"%d" % listener.getsockname()[1])
        os.read(ours_only[0], 1)  # until our parent is gone
        os._exit(0)
    faulthandler.dump_traceback_later(200, exit=True)
    return "127.0.0.1", int(os.read(reading, 10))

def our_threads():
    loop = running_engine()
    return {getattr(loop, name) for name in ("_thread_id", "_helper_id") if hasattr(loop, name)}

seen = set()   # the threads in which code of this program's ran

class Cycle:
    "Garbage that only the collector finds."
    def __init__(self):
        self.me = self
        self.watched = weakref.ref(self, lambda _: seen.add(get_ident()))
    def __del__(self):
        seen.add(get_ident())

def talk(sock, size=100):
    sock.sendall(b"x" * size)
    while size:
        data = sock.recv(size)
        assert data, "the connection has ended"
        size -= len(data)
"""

GARBAGE = """
server = echo_server()
gc.callbacks.append(lambda phase, info: seen.add(get_ident()))
gc.set_threshold(1)
def work():
    for _ in range(20):
        with utpsocket.create_connection(server) as sock:
            sock.settimeout(60)
            for _ in range(10):
                Cycle()
                talk(sock)
            talk(sock, 100_000)
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
ours = our_threads()
assert seen and ours and not seen & ours, (seen, ours)
shutdown()
assert gc.get_threshold()[0] == 1, gc.get_threshold()
print("fine")
"""

# What rpyc's proxies do: tell the peer that they are gone, and wait for its answer.
ROUND_TRIP = """
server = echo_server()
errors = []
class Proxy(Cycle):
    def __del__(self):
        seen.add(get_ident())
        try:
            talk(self.sock)
        except Exception as error:
            errors.append(error)
gc.set_threshold(30)
def work():
    with utpsocket.create_connection(server) as sock, \\
            utpsocket.create_connection(server) as side:
        sock.settimeout(60)
        side.settimeout(60)
        for _ in range(300):
            proxy = Proxy()
            proxy.sock = side
            del proxy
            talk(sock)
        gc.collect()
work()
assert not errors, errors
assert seen and not seen & our_threads(), (seen, our_threads())
print("fine")
os._exit(0)
"""

# A thread waits for the network with a lock in its hands, as logging.SocketHandler does; a finalizer wants the lock.
LOCK = """
server = echo_server()
lock = threading.RLock()
class Logs(Cycle):
    def __del__(self):
        seen.add(get_ident())
        assert lock.acquire(timeout=60), "deadlock"
        lock.release()
sys.unraisablehook = lambda hook: (print(hook.exc_value), os._exit(1))
gc.set_threshold(30)
def work():
    with utpsocket.create_connection(server) as sock:
        sock.settimeout(60)
        for _ in range(1000):
            Logs()
            with lock:
                talk(sock)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert seen and not seen & our_threads(), (seen, our_threads())
print("fine")
os._exit(0)
"""

# Whatever else of a program's the interpreter calls by itself: hooks, what stands in place of builtins and streams, and
# objects that a program hands over, with what they do at their end.
HOOKS = """
import builtins, codecs, warnings
server = echo_server()
called = {}
def note(what, *_):
    called.setdefault(what, set()).add(get_ident())
class Finder:
    def find_spec(self, *_):
        note("meta_path")
class Stream:
    def write(self, _):
        note("stream")
    def flush(self):
        note("stream")
class Host(str):
    def __del__(self):
        note("host")
class Number(int):
    def __index__(self):
        note("index")
        return int(self)
    def __del__(self):
        note("number")
class Sock(utpsocket.socket):
    def __del__(self):
        note("socket")
        super().__del__()
sys.meta_path.insert(0, Finder())
codecs.register(lambda name: note("codecs"))
plain_import = builtins.__import__
def imports(*arguments, **named):
    note("import")
    return plain_import(*arguments, **named)
builtins.__import__ = imports
sys.excepthook = lambda *_: note("excepthook")
sys.unraisablehook = lambda *_: note("unraisablehook")
threading.excepthook = lambda *_: note("threading.excepthook")
warnings.simplefilter("always")
warnings.showwarning = lambda *_, **__: note("showwarning")
threading.settrace(lambda *_: note("trace"))
threading.setprofile(lambda *_: note("profile"))
sys.stderr = Stream()
gc.set_threshold(5)
for _ in range(20):
    sock = Sock()
    weakref.finalize(sock, note, "weakref")
    sock.settimeout(60)
    sock.bind((Host("127.0.0.1"), Number(0)))
    for level, name, value in ((6, 1, 1), (1, 7, 100_000), (6, 4, 7), (6, 18, 30_000), (0, 1, 16)):
        sock.setsockopt(level, name, Number(value))
    sock.connect((Host("127.0.0.1"), Number(server[1])))
    talk(sock, 100_000)
    refused = Sock()
    refused.settimeout(60)
    try:
        refused.bind(sock.getsockname())
    except OSError:
        pass
    del sock, refused  # unclosed
    if hasattr(running_engine(), "_thread_id"):
        running_engine().post(lambda loop: 1 / 0)
ours = our_threads()
assert ours
assert {"host", "number", "socket", "weakref", "showwarning"} <= set(called), called
assert not [what for what, threads in called.items() if threads & ours], called
print("fine", flush=True)
os._exit(0)
"""


# While a thread of the program's handles what the engine's process has reported, other threads wait for it.
NOTICES = """
server = echo_server()
inside = set()
def look(phase, info):
    frame = sys._getframe()
    while frame:
        if frame.f_code.co_name in ("_take_all", "_force_all_resets"):
            inside.add(frame.f_code.co_name)
        frame = frame.f_back
    seen.add(get_ident())
gc.callbacks.append(look)
gc.set_threshold(1)
def work():
    for _ in range(20):
        with utpsocket.create_connection(server) as sock:
            talk(sock)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert seen and not inside, inside
assert gc.isenabled()
print("fine")
os._exit(0)
"""


def run(program: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


@pytest.mark.parametrize("program", [GARBAGE, ROUND_TRIP, LOCK, HOOKS], ids=["garbage", "round trip", "lock", "hooks"])
@pytest.mark.parametrize(
    "environment",
    [{}, {"UTPSOCKET_ENGINE": "process"}, {"UTPSOCKET_POLLER": "poll"}, {"UTPSOCKET_KEEP_GIL": "0"}],
    ids=["thread", "process", "poll", "plain calls"],
)
def test_no_finalizer_runs_on_a_thread_of_ours(program: str, environment: dict[str, str]) -> None:
    run(program, **environment)


def test_no_finalizer_runs_while_other_threads_wait_for_a_lock_of_ours() -> None:
    run(NOTICES, UTPSOCKET_ENGINE="process")


# ── the collector is the program's again ──


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    found = gc.get_threshold()
    engine()
    yield found
    gc.set_threshold(*found)
    gc.enable()


def thresholds_at_work() -> tuple[int, int, int]:
    found: tuple[int, int, int] = engine().call(lambda loop: gc.get_threshold())
    return found


def is_out_of_reach() -> bool:
    return thresholds_at_work()[0] == garbage_collector._NEVER_REACHED


def at_rest() -> tuple[int, int, int]:
    """The thresholds while the engine sleeps."""
    loop = engine()
    assert isinstance(loop, Loop)
    while not loop._is_asleep or garbage_collector._pausing:
        pass
    return gc.get_threshold()


def test_the_thresholds_are_the_programs_while_the_engine_sleeps(thresholds: tuple[int, int, int]) -> None:
    assert is_out_of_reach()
    assert at_rest() == thresholds
    gc.set_threshold(123, 4, 5)
    assert is_out_of_reach()
    assert at_rest() == (123, 4, 5)


def test_what_the_program_sets_while_the_engine_works_stays(thresholds: tuple[int, int, int]) -> None:
    engine().call(lambda loop: gc.set_threshold(321, 2, 1))
    assert at_rest() == (321, 2, 1)
    assert is_out_of_reach()
    assert at_rest() == (321, 2, 1)


def test_a_threshold_of_ours_that_the_program_puts_back_is_repaired(thresholds: tuple[int, int, int]) -> None:
    ours = thresholds_at_work()
    at_rest()
    gc.set_threshold(*ours)
    thresholds_at_work()
    assert at_rest() == thresholds


@pytest.mark.parametrize("is_enabled", [True, False])
def test_whether_the_collector_is_enabled_is_never_changed(
    thresholds: tuple[int, int, int], *, is_enabled: bool
) -> None:
    (gc.enable if is_enabled else gc.disable)()
    assert engine().call(lambda loop: gc.isenabled()) is is_enabled
    at_rest()
    assert gc.isenabled() is is_enabled
    (gc.disable if is_enabled else gc.enable)()
    engine().call(lambda loop: None)
    at_rest()
    assert gc.isenabled() is not is_enabled


def test_a_child_of_a_fork_has_the_programs_thresholds(thresholds: tuple[int, int, int]) -> None:
    def fork(_: Any) -> int:
        pid = os.fork()
        if not pid:
            os._exit(gc.get_threshold() != thresholds)
        return pid

    pid = engine().call(fork)  # the worst moment: the engine at work
    assert os.waitpid(pid, 0)[1] == 0


def test_the_end_of_the_engine_gives_the_thresholds_back(thresholds: tuple[int, int, int]) -> None:
    thresholds_at_work()
    shutdown()
    assert gc.get_threshold() == thresholds
    assert not garbage_collector._pausing


# ── hooks ──


class ExceptHook:
    """A sys.excepthook, and the threads that called it."""

    def __init__(self, then: BaseException | None = None) -> None:
        self.threads: list[int] = []
        self.errors: list[BaseException] = []
        self.then = then
        self.was_called = threading.Semaphore(0)

    def __call__(self, kind: type[BaseException], error: BaseException, _: object) -> None:
        self.threads.append(get_ident())
        self.errors.append(error)
        self.was_called.release()
        if self.then is not None:
            raise self.then


def fail(_: Loop) -> None:
    raise ZeroDivisionError("a defect")


@pytest.mark.parametrize("then", [None, ValueError("worse"), SystemExit(3), KeyboardInterrupt()])
def test_a_fault_is_reported_by_another_thread(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], then: BaseException | None
) -> None:
    reported = ExceptHook(then)
    monkeypatch.setattr(sys, "excepthook", reported)
    loop = engine()
    for _ in range(3):
        loop.post(fail)
        assert reported.was_called.acquire(timeout=60)
        assert loop.call(lambda loop: 7) == 7
    assert loop.call(lambda loop: get_ident()) not in reported.threads
    assert [type(error) for error in reported.errors] == [ZeroDivisionError] * 3
    assert fault_reports._busy.acquire(timeout=60)  # no report is being written any more
    fault_reports._busy.release()


def test_a_hook_that_blocks_delays_nothing_and_uses_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, may_go = threading.Event(), threading.Event()
    count = 0

    def hook(*_: object) -> None:
        nonlocal count
        count += 1
        entered.set()
        may_go.wait(100)

    monkeypatch.setattr(sys, "excepthook", hook)
    loop = engine()
    loop.post(fail)
    assert entered.wait(60)
    for _ in range(2 * fault_reports._MAX_REPORTS):
        loop.post(fail)
        assert loop.call(lambda loop: 7) == 7
    assert len(fault_reports._reports) == fault_reports._MAX_REPORTS
    may_go.set()
    assert fault_reports._busy.acquire(timeout=60)
    fault_reports._busy.release()
    assert count == 1 + fault_reports._MAX_REPORTS


def test_a_fault_just_before_the_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = ExceptHook()
    monkeypatch.setattr(sys, "excepthook", reported)
    monkeypatch.setattr(fault_reports, "start_thread", lambda *_: fail(cast("Loop", engine())))  # no thread to be had
    loop = engine()
    loop.post(fail)
    loop.call(lambda loop: None)
    assert not reported.errors
    shutdown()
    assert [type(error) for error in reported.errors] == [ZeroDivisionError]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="settrace_all_threads() is of 3.12")
@pytest.mark.parametrize("kind", ["trace", "profile"])
def test_a_trace_function_put_on_all_threads_leaves_the_engines(kind: str) -> None:
    def is_traced(_: Loop) -> bool:
        return (sys.gettrace if kind == "trace" else sys.getprofile)() is not None

    engine().call(lambda loop: None)
    on_all = getattr(threading, f"set{kind}_all_threads")
    on_all(lambda *_: None)
    try:
        assert not engine().call(is_traced)
    finally:
        on_all(None)


# ── last references ──


def test_an_exception_that_the_program_gets_is_not_the_engines_own() -> None:
    """What is raised takes the program's frames along, with all that is in them."""
    with utpsocket.socket() as first, utpsocket.socket() as second:
        first.bind(("127.0.0.1", 0))
        for _ in range(3):
            with pytest.raises(OSError, match="in use") as caught:
                second.bind(first.getsockname())
            assert "_carry_out" not in [frame.name for frame in traceback.extract_tb(caught.tb)]


def test_a_failed_call_leaves_no_cyclic_garbage() -> None:
    class Local:
        pass

    def try_it() -> weakref.ref[Local]:
        local = Local()
        with utpsocket.socket() as first, utpsocket.socket() as second:
            first.bind(("127.0.0.1", 0))
            try:
                second.bind(first.getsockname())
            except OSError:
                pass
        return weakref.ref(local)

    gc.collect()
    gc.disable()
    try:
        assert try_it()() is None
    finally:
        gc.enable()
