"""The process in which faults are injected: an engine, twenty connections that nothing may happen to, and a play.

Speaks JSON lines with engine.py. `{"record": rounds}` answers with the sites; `{"site": …}` with what went wrong.
After each fault: nobody hangs; every connection but one still carries bytes, both ways, and none waits for longer than
a second (innocents.py); no end of file comes before its bytes; the thread is the same; and what was closed leaves no
fd. With UTPSOCKET_ENGINE=process the faults are in the engine's process, and this one is its application.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.faults.innocents import INNOCENTS, MAX_WAIT_S, Innocents
from tests.faults.inside import Inside, Outside, fds
from tests.faults.scenes import PATIENCE_S, Play
from utpsocket import stats
from utpsocket.engine import running_engine

HARMLESS = ("EINTR", "ENOBUFS", "EAGAIN", "ENOMEM")  # what is lacking for a moment, or said for no reason of a socket's
HARMLESS_CALLS = ("udp.receive", "eventfd.read", "eventfd.write", "epoll_wait")
# Of sockets that are being made, which may pay as TCP's: those that stand may not.
COSTLY_CALLS = ("udp.send", "connect", "listen", "bind", "accept", "getsock", "setsock", "epoll_ctl", "dup", "fstat")
BACKOFF = 2.0  # what was lost again and again is sent again in up to twice the time that it failed for
SETTLE_S = 20.0
MAX_SETTLE_S = 120.0  # while the last of a connection is being repeated, as Linux gives a FIN 60 s
USUAL_WAIT_S = 2.0


class Stage:
    """What stays from point to point."""

    def __init__(self) -> None:
        self.is_remote = os.environ.get("UTPSOCKET_ENGINE") == "process"
        outside = Outside() if self.is_remote else None
        self.innocents = Innocents(
            lambda: {os.getpid(), *(each.pid for each in (running_engine(),) if each is not None)}
        )
        self.loop: Any = running_engine()  # which the innocents have begun
        self.inside: Any = outside or Inside(self.loop)
        play = Play()
        if not play.ended(60) or play.victims or play.wrong:
            raise SystemExit(f"the play fails without any fault: {play.victims} {play.wrong}")
        self.fds = self._at_rest()
        self.kinds = Counter(self.inside.kinds())  # to say of what there is more, where something is left over

    def _census(self) -> tuple[int, int, int]:
        """How many fds that are no ports, and ports that are more than waiting, there are in all; and how many
        connections are at their end, but not over.
        """
        others, ports, waiting, closing = self.inside.census()
        if self.is_remote:
            here, _ = fds()
            others += here
        return others, ports - waiting, closing

    def _at_rest(self) -> tuple[int, int]:
        """The fds that there are when every connection that was closed is over, twenty times on end."""
        deadline = time.monotonic() + MAX_SETTLE_S
        found, calm = self._census(), 0
        while calm < 20:
            time.sleep(0.01)
            before, found = found, self._census()
            calm = calm + 1 if found == before and not found[2] else 0
            if time.monotonic() > deadline:
                raise SystemExit(f"the fds come and go without any fault: {before} {found}")
        return found[:2]

    def _left_over(self) -> tuple[int, int]:
        """How many fds, and ports, there are more than at first, once what is on its way out has had its time."""
        start = time.monotonic()
        while True:
            others, ports, closing = self._census()
            passed_s = time.monotonic() - start
            left = max(0, others - self.fds[0]), max(0, ports - self.fds[1])
            if left == (0, 0) or passed_s > (MAX_SETTLE_S if closing else SETTLE_S):
                return left
            if passed_s > USUAL_WAIT_S:
                gc.collect()
            time.sleep(0.01)

    def record(self, rounds: int) -> list[Any]:
        self.inside.record()
        for _ in range(rounds):
            Play().ended(60)
        sites: list[Any] = self.inside.sites()
        return sites

    def inject(self, site: Any, occurrence: int, error: str) -> dict[str, Any]:
        """One exception, or errno, at one call."""
        self.inside.arm(site, occurrence, error)
        return self._played(self.inside.disarm, max_victims=1, max_wait_s=MAX_WAIT_S)

    def fail_calls(self, call: str, error: str, seconds: float) -> dict[str, Any]:
        """A kind of system call, once or for some time."""
        self.inside.arm_call(call, error, seconds)
        is_harmless = (error in HARMLESS or call in HARMLESS_CALLS) and not call.startswith(COSTLY_CALLS)
        is_others = call.startswith(COSTLY_CALLS)
        return self._played(
            self.inside.disarm_call,
            max_victims=0 if is_harmless else 1_000 if seconds else 1,
            max_wait_s=MAX_WAIT_S + BACKOFF * seconds,
            seconds=seconds,
            innocents_may_pay=not (is_harmless or is_others),
        )

    def _played(
        self,
        disarm: Callable[[], Any],
        *,
        max_victims: int,
        max_wait_s: float,
        seconds: float = 0.0,
        innocents_may_pay: bool = True,
    ) -> dict[str, Any]:
        """The play with what was armed, and what was wrong."""
        loop, innocents = self.loop, self.innocents
        innocents.wrong.clear()
        innocents.begin(max_wait_s)
        ends_at = time.monotonic() + seconds
        play, started_at = Play(), time.monotonic()
        while not play.ended(1) and not innocents.is_over(4 * PATIENCE_S, since=started_at):
            pass
        if not play.ended(0):
            return {"has_fired": True, "wrong": [f"the play hangs in {play.scene}", *play.wrong], "is_lost": True}
        time.sleep(max(0.0, ends_at - time.monotonic()))
        late = innocents.stuck()
        if not loop.is_alive or running_engine() is not loop:
            return {"has_fired": True, "wrong": [late, "the engine's thread ended"], "is_lost": True}
        has_fired = True if late else disarm()
        broken = innocents.heal()
        victims = play.victims + broken
        wrong = play.wrong + innocents.wrong
        if len(victims) > max_victims or (broken and not innocents_may_pay):
            wrong.append(f"{len(victims)} connections paid: {victims}")
        if len(innocents.all) == INNOCENTS and not late:
            others, ports = self._left_over()
            if others or ports:
                more = dict(Counter(self.inside.kinds()) - self.kinds)
                wrong.append(f"fds leaked: {others} and {ports} UDP ports; more than at first: {more}")
        return {
            "has_fired": bool(has_fired),
            "wrong": wrong + [late] * bool(late),
            "is_late_only": bool(late) and not wrong,
            "victims": victims,
            "faults": stats.engine_stats().faults,
            "is_lost": bool(wrong or late),
        }


def main() -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, chain=True)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.excepthook = lambda _: None
    stage = Stage()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "record" in asked:
            answer: Any = {"sites": stage.record(asked["record"])}
        else:
            answer = stage.fail_calls(**asked) if "call" in asked else stage.inject(**asked)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
