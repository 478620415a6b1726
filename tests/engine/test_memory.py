"""How much memory a connection takes that does nothing: the objects that it alone refers to are counted, not pages.

Numbers are left out: which of them are objects of their own depends on their values. What the kernel holds for its
descriptors, and its entries in the engine's tables, are not in it either (docs/performance.md §8).
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from types import FunctionType, ModuleType
from typing import Any, Final

import pytest

import utpsocket
from utpsocket.engine import engine
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.ports.send_grants import GrantQueue

# Both ends of a connection together. Measured on CPython 3.11: 10,210 in the pure build, 10,380 after 100,000 bytes
# each way; a twentieth is for other versions. One more deque would be too much.
MAX_BYTES: Final = 10_900
# Of so many the least counts: where the machine is busy packets are late or sent again, which leaves small objects.
CONNECTIONS: Final = 5
SHARED: Final = (type, ModuleType, FunctionType, Loop, GrantQueue, int)


def own_objects(*roots: object) -> list[Any]:
    """What can be reached from `roots`, without what connections share."""
    found: dict[int, object] = {}
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or isinstance(thing, SHARED) or (isinstance(thing, Endpoint) and not thing.is_private):
            continue
        found[id(thing)] = thing
        waiting += gc.get_referents(thing)
    return list(found.values())


@pytest.mark.parametrize("bytes_each_way", [0, 100_000])
def test_an_idle_connection_holds_little(bytes_each_way: int) -> None:
    loop = engine()
    assert isinstance(loop, Loop)
    with ExitStack() as stack, utpsocket.create_server(("127.0.0.1", 0)) as listener:
        connections = []
        for _ in range(CONNECTIONS):
            before = set(loop.channels)
            client = stack.enter_context(utpsocket.create_connection(listener.getsockname()))
            server = stack.enter_context(listener.accept()[0])
            if bytes_each_way:
                for sender, receiver in ((client, server), (server, client)):
                    thread = threading.Thread(target=sender.sendall, args=(bytes(bytes_each_way),))
                    thread.start()
                    left = bytes_each_way
                    while left:
                        left -= len(receiver.recv(left))
                    thread.join()
            bridges = [channel for cookie, channel in list(loop.channels.items()) if cookie not in before]
            assert len(bridges) == 2 and all(isinstance(bridge, Bridge) for bridge in bridges)
            while not all(bridge.is_flushed for bridge in bridges):
                time.sleep(0.01)
            connections.append(own_objects(client, server, *bridges))
        found: Counter[int] = Counter(id(thing) for things in connections for thing in things)
        least = min((sizes_of(things, found) for things in connections), key=Counter.total)
        assert least.total() <= MAX_BYTES, least.most_common()


def sizes_of(things: list[Any], found: Counter[int]) -> Counter[str]:
    """The bytes of each type, of what one connection has found."""
    sizes: Counter[str] = Counter()
    for thing in things:
        if found[id(thing)] == 1:
            sizes[f"{type(thing).__module__}.{type(thing).__qualname__}"] += sys.getsizeof(thing)
    return sizes
