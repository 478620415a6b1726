"""`stat`: the engines of running processes, their ports and their connections, like `ss -ti`.

    stat            of every process that may be asked: those of the same user, root's all
    stat PID        of one

The processes need not be prepared for it, and nothing runs in them while nobody asks (engine/outside.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final

from utpsocket.cli import engines
from utpsocket.cli.engines import Figures, NotAnswered
from utpsocket.cli.messages import WRONG_USAGE, complain, note
from utpsocket.cli.quantities import printable, show_rate, show_size, show_time
from utpsocket.protocol import Address
from utpsocket.sockets.host_lists import Hosts

EXAMPLES: Final = (
    "stat                                  # all of them",
    "stat 1234 --every 2                   # one process, with rates",
    "stat --state connected --peer 192.0.2.0/24 --json",
)
EXIT_STATUS: Final = "0 all have answered, 1 a process has no engine or did not answer, 2 wrong usage"
STATES: Final = ("idle", "syn_sent", "syn_received", "connected", "time_wait", "closed")
_CLEAR: Final = "\x1b[H\x1b[2J"
_Key = tuple[object, ...]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add stat's arguments to `parser`."""
    parser.add_argument(
        "pid", metavar="PID", nargs="?", type=int, help="of a process (default: all that have an engine)"
    )
    parser.add_argument("--state", choices=STATES, action="append", help="connections in this state alone; repeatable")
    parser.add_argument("--local", metavar="HOSTS", help="connections of these addresses alone, such as *:6881")
    parser.add_argument("--peer", metavar="HOSTS", help="connections to these addresses and networks alone")
    parser.add_argument("--every", type=_seconds, metavar="S", help="again every S seconds until Ctrl-C, with rates")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout; with --every one a line")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds < float("inf"):
        raise ValueError
    return seconds


_seconds.__name__ = "number of seconds"  # for argparse's message


def run(arguments: argparse.Namespace) -> int:
    """Ask and show, once or again and again; the exit status."""
    try:
        chosen = Filter(arguments.state, arguments.local, arguments.peer)
    except ValueError as wrong:
        complain(str(wrong))
        return WRONG_USAGE
    rates = Rates()
    while True:
        processes, status = ask(arguments.pid)
        for process in processes:
            process["connections"] = [each for each in process["connections"] if chosen.has(each)]
        if arguments.every is not None:
            rates.add_to(processes, time.monotonic())
        if arguments.json:
            shown = json.dumps(processes[0] if arguments.pid is not None and processes else {"processes": processes})
        else:
            shown = "\n".join(line for process in processes for line in lines_of(process))
        if arguments.every is not None and not arguments.json and sys.stdout.isatty():
            shown = _CLEAR + shown
        if processes or arguments.json:
            print(printable(shown, sys.stdout.encoding), flush=True)
        elif not status:
            note("no process here has an engine")
        if arguments.every is None or (status and arguments.pid is not None):
            return status
        time.sleep(arguments.every)


def ask(pid: int | None) -> tuple[list[Figures], int]:
    """The figures of this process, or of all, and the exit status. Says why one did not answer."""
    if pid is None:
        asked = engines.find()
    else:
        serving = engines.serving(pid)
        if serving is None:
            complain(f"process {pid} has no engine")
            return [], 1
        asked = [serving]
    processes, status = [], 0
    for each in asked:
        try:
            processes.append(engines.ask(each))
        except NotAnswered as error:
            complain(str(error))
            status = 1
    return processes, status


class Filter:
    """Which connections are shown."""

    def __init__(self, states: Sequence[str] | None, local: str | None, peer: str | None) -> None:
        """What is None matches all. Raises ValueError for what is no list of hosts."""
        self._states = states
        self._local, self._peer = (None if text is None else _addresses(text) for text in (local, peer))

    def has(self, connection: Figures) -> bool:
        """Whether it is shown."""
        if self._states is not None and connection["state"] not in self._states:
            return False
        if self._local is not None and not (connection["local"] and self._local.matches(connection["local"])):
            return False
        return self._peer is None or bool(connection["peer"] and self._peer.matches(connection["peer"]))


def _addresses(text: str) -> Hosts:
    hosts = Hosts(text)
    if hosts.has_names:
        raise ValueError(f"{text}: addresses and networks are needed, no names")
    return hosts


class Rates:
    """Bytes per second of each connection since the time before."""

    def __init__(self) -> None:
        self._before: dict[_Key, tuple[float, int, int]] = {}

    def add_to(self, processes: Sequence[Figures], now: float) -> None:
        """Give each connection `sent_bytes_per_second` and `received_bytes_per_second`, None the first time."""
        seen: dict[_Key, tuple[float, int, int]] = {}
        for process in processes:
            for each in process["connections"]:
                key = process["pid"], each["local"], each["peer"]
                at, sent, received = self._before.get(key, (now, 0, 0))
                seconds = now - at
                counts = each["sent_bytes"] - sent, each["received_bytes"] - received
                rates = [round(count / seconds) if seconds and count >= 0 else None for count in counts]
                each["sent_bytes_per_second"], each["received_bytes_per_second"] = rates
                seen[key] = now, each["sent_bytes"], each["received_bytes"]
        self._before = seen


def lines_of(process: Figures) -> Iterator[str]:
    """A process for people."""
    engine, connections = process["engine"], process["connections"]
    yield (
        f"process {process['pid']} ({process['build']}), {engine['connections_open']:,} connections over uTP and "
        f"{engine['tcp_open']:,} over TCP, {engine['ports_open']:,} ports: {process['command']}"
    )
    for port in process["ports"]:
        if port["is_listening"]:
            yield f"  {'listening':<14}{_shown(port['local'])}"
    for each in connections:
        yield f"  {each['state']:<14}{_shown(each['local']):<24}{_shown(each['peer'])}"
        for line in _details(each):
            yield f"      {line}"


def _details(each: Figures) -> Iterator[str]:
    yield (
        f"{each['congestion']} rtt {show_time(each['rtt_us'])} min {show_time(each['min_rtt_us'])} "
        f"rto {show_time(each['rto_us'])} queueing {show_time(each['queueing_delay_us'])} "
        f"cwnd {show_size(each['cwnd_bytes'])} mtu {each['packet_bytes']:,}"
    )
    yield (
        f"sent {show_size(each['sent_bytes'])} acked {show_size(each['acked_bytes'])} "
        f"in flight {show_size(each['in_flight_bytes'])} unsent {show_size(each['unsent_bytes'])} "
        f"received {show_size(each['received_bytes'])} "
        f"unread {show_size(max(0, each['received_bytes'] - each['delivered_bytes']))} "
        f"windows {show_size(each['peer_window_bytes'])} peer {show_size(each['our_window_bytes'])} ours"
    )
    yield (
        f"packets {each['sent_packets']:,} out {each['received_packets']:,} in {each['retransmitted_packets']:,} again "
        f"{each['lost_packets']:,} lost {each['timeouts']:,} timeouts {each['tail_probes']:,} probes "
        f"{each['duplicate_packets']:,} twice {each['dropped_packets']:,} dropped"
    )
    if each.get("sent_bytes_per_second") is not None and each.get("received_bytes_per_second") is not None:
        yield (
            f"sending {show_rate(each['sent_bytes_per_second'])} "
            f"receiving {show_rate(each['received_bytes_per_second'])}"
        )


def _shown(address: Address | None) -> str:
    if not address:
        return "*"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"
