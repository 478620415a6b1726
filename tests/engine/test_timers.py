"""Deadlines: each is due once, at its time, and a cancelled one does not keep its owner in memory until then."""

from __future__ import annotations

import random
import weakref

from utpsocket.engine.timers import FIRST_ENTRY_US, TICK_US, Deadline, Timers
from utpsocket.protocol.times import NEVER

HANDSHAKE_US = 31_000_000
TIME_WAIT_US = 600_000


class Waiting:
    """What Timers needs of a bridge."""

    def __init__(self) -> None:
        self.deadline = Deadline()
        self.is_gone = False


def test_an_owner_that_has_ended_is_not_kept_until_its_deadlines() -> None:
    """A connection that lived for a tenth of a second was kept for 31, for the handshake that might have failed."""
    timers: Timers[Waiting] = Timers()
    kept = []
    for number in range(1_000):
        bridge = Waiting()
        kept.append(weakref.ref(bridge))
        timers.schedule(bridge, number + HANDSHAKE_US, number)
        timers.schedule(bridge, number + TIME_WAIT_US, number)
        bridge.is_gone = True
    del bridge
    assert sum(one() is not None for one in kept) < 200


def test_a_deadline_is_due_once_whichever_others_are_cancelled() -> None:
    chance = random.Random(1)
    timers: Timers[Waiting] = Timers()
    waiting: dict[Waiting, int] = {}
    now = 0
    due_count = 0
    for _ in range(5_000):
        bridge = Waiting() if not waiting or chance.random() < 0.4 else chance.choice(list(waiting))
        at = now + chance.choice((50, 5_000, 500_000))
        timers.schedule(bridge, at, now)
        waiting[bridge] = at
        if chance.random() < 0.3:
            over = chance.choice(list(waiting))
            over.is_gone = True
            del waiting[over]
        now += chance.randrange(300)
        due = timers.due(now)
        assert len(due) == len(set(due))
        assert all(waiting[bridge] <= now for bridge in due)
        assert not [bridge for bridge, at in waiting.items() if at + TICK_US <= now and bridge not in due]
        due_count += len(due)
        for bridge in due:
            del waiting[bridge]
    assert due_count > 500
    assert timers._entry_count == sum(map(len, timers._buckets.values())) <= 2 * len(waiting) + 64


def test_a_connection_that_is_soon_over_needs_one_entry() -> None:
    """Its handshake, its data, their acks and its end have each an earlier deadline than the one before."""
    timers: Timers[Waiting] = Timers()
    bridge = Waiting()
    for wait_us in (NEVER, HANDSHAKE_US, 200_000, 40_000, 20_000, TIME_WAIT_US):
        timers.schedule(bridge, wait_us, 0)
    assert timers._entry_count == 1
    assert not timers.due(FIRST_ENTRY_US + TICK_US)
    assert timers.due_call(FIRST_ENTRY_US + TICK_US) is None
    assert TIME_WAIT_US <= timers.next_at < TIME_WAIT_US + TICK_US
    assert timers.due(timers.next_at) == [bridge]


def test_a_due_call_comes_with_the_object_whose_fault_its_exception_is() -> None:
    """Nothing may fail between the two: a call that is popped and not made would be lost, and blamed on nobody."""

    class Owner:
        def act(self) -> None: ...

    owner = Owner()
    timers: Timers[Waiting] = Timers()
    timers.call_at(20, owner.act)
    timers.call_at(10, lambda: None)
    assert timers.due_call(5) is None
    first, second = timers.due_call(20), timers.due_call(20)
    assert first is not None
    assert first[1] is None
    assert second == (owner.act, owner)
    assert timers.due_call(20) is None
