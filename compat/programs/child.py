"""A process under test: `python -m compat.programs.child MODULE NAME server|client [PORT]`.

It is put over uTP before it imports anything else, plays one side of a scenario, and speaks JSON lines with the runner
on what was its standard output: `port` once a server can be reached; `report` with its connection counts, a server's
when the runner asks for it by a line, a client's when it is through; `failed` with the cause. What programs print goes
to standard error. Its standard input closed is the end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

_channel = -1


def main() -> None:
    global _channel
    module, name, role, *port = sys.argv[1:]
    _channel = os.dup(1)
    os.dup2(2, 1)
    sys.argv[1:] = []
    from compat.programs.scenario import scenarios_of

    (scenario,) = (each for each in scenarios_of(module) if each.name == name)
    if scenario.patched and not os.environ.get("COMPAT_PROGRAMS_CONTROL"):
        import utpsocket.monkey

        utpsocket.monkey.patch_all()
    threading.Thread(target=_obey, name="runner's orders", daemon=True).start()
    if role == "server":
        _guarded(lambda: scenario.server(_ready))
        # A server that works in threads of its own returns at once; one that has served its last client waits here too.
        while True:
            time.sleep(3600)
    _guarded(lambda: scenario.client(int(port[0])))
    _say({"report": report()})


def report() -> dict[str, int]:
    """What this process did on the network, so far."""
    from utpsocket import stats

    engine = stats.engine_stats()
    return {
        "initiated": engine.connections_initiated,
        "accepted": engine.connections_accepted,
        "faults": engine.faults,
        "tcp_sockets": open_tcp_sockets(),
    }


def open_tcp_sockets() -> int:
    """How many of this process's fds are the kernel's TCP: a program that went its own way shows here."""
    inodes = set()
    for path in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as table:
                inodes |= {f"socket:[{line.split()[9]}]" for line in list(table)[1:]}
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}") in inodes
        except OSError:
            pass  # closed meanwhile: the folder's own fd is
    return count


def _guarded(play: Callable[[], None]) -> None:
    try:
        play()
    except BaseException as error:
        traceback.print_exc()
        _say({"failed": describe(error)})
        sys.stderr.flush()
        os._exit(1)


def describe(error: BaseException) -> str:
    """The error in one line, with the place in the scenario or below it where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}scenarios{os.sep}" in frame.filename]
    place = ours[-1] if ours else frames[-1]
    text = str(error) or (place.line or "")
    said = traceback.format_exception_only(type(error), error)[-1].strip() if str(error) else f"{type(error).__name__}"
    return f"{said if str(error) else f'{said}: {text}'} ({os.path.basename(place.filename)}:{place.lineno})"


def _ready(port: int) -> None:
    _say({"port": port})


def _say(message: dict[str, Any]) -> None:
    os.write(_channel, json.dumps(message).encode() + b"\n")


def _obey() -> None:
    while orders := os.read(0, 100):
        if b"report" in orders:
            _say({"report": report()})
    os._exit(0)


if __name__ == "__main__":
    # Under its real name too: programs that start processes of their own import the main module again.
    main()
