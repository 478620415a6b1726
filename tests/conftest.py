"""What every test gets: repeatable Hypothesis, and a look at what is left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples on every machine and in every run: a failure is a change's fault, never the dice's.
# `--hypothesis-profile=default` throws them anew.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


# urllib asks the proxy of this machine, if it has one, for servers on 127.0.0.1 too, unless no_proxy excludes them. For
# what the tests start as well; the tests that use the package index have the proxy still.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "::1", "localhost"]))


# A shell has what it starts in the background ignore Ctrl-C, and whatever that starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def leaves_nothing_behind() -> Iterator[None]:
    """Fail the test when, with the engine shut down, an fd or a thread is there that was not there before."""
    shut_down_engine()
    descriptors, threads = open_descriptors(), set(threading.enumerate())
    yield
    shut_down_engine()
    gc.collect()
    left_threads = [thread.name for thread in threading.enumerate() if thread not in threads]
    left_descriptors = {fd: target for fd, target in open_descriptors().items() if fd not in descriptors}
    assert (left_threads, left_descriptors) == ([], {})


def shut_down_engine() -> None:
    if "utpsocket.engine" in sys.modules:
        sys.modules["utpsocket.engine"].shutdown()


def open_descriptors() -> dict[int, str]:
    """This process's open file descriptors and what each is; {} where there is no /proc."""
    found = {}
    listed = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for name in listed:
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
    return found
