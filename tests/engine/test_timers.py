"""Deadlines: each is due once, at its time, and a cancelled one does not keep its owner in memory until then."""

from __future__ import annotations

import random
import weakref

from utpsocket.engine.timers import Deadline, Timers

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
        timers.schedule(bridge, number + HANDSHAKE_US)
        timers.schedule(bridge, number + TIME_WAIT_US)
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
        timers.schedule(bridge, at)
        waiting[bridge] = at
        if chance.random() < 0.3:
            over = chance.choice(list(waiting))
            over.is_gone = True
            del waiting[over]
        now += chance.randrange(300)
        due = timers.due(now)
        assert sorted(map(id, due)) == sorted(id(bridge) for bridge, at in waiting.items() if at <= now)
        due_count += len(due)
        for bridge in due:
            del waiting[bridge]
    assert due_count > 500
    assert len(timers._heap) <= 2 * len(waiting) + 64


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
