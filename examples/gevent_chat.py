"""A chat room of greenlets: one process, one thread, any number of participants, and every byte of it over uTP.

Only the hook below is about uTP: gevent's own server and sockets are used as ever.

Run: python3 -m examples.gevent_chat        (needs gevent: pip install 'utpsocket[gevent]')
"""

from __future__ import annotations

import gevent
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from utpsocket import green, stats

NAMES = ("Ada", "Grace", "Edsger", "Barbara")


class Room:
    """Passes on what each member says to all the others."""

    def __init__(self) -> None:
        self.members: dict[str, socket.socket] = {}
        self.is_full = Event()

    def welcome(self, sock: socket.socket, address: tuple[str, int]) -> None:
        with sock.makefile("r", encoding="utf-8") as lines:
            name = lines.readline().strip()
            self.members[name] = sock
            if len(self.members) == len(NAMES):
                self.is_full.set()
            for line in lines:
                for other, member in self.members.items():
                    if other != name:
                        member.sendall(f"{name}: {line}".encode())
        del self.members[name]


def talk(name: str, address: tuple[str, int], room: Room) -> list[str]:
    """Say hello to everybody; what everybody else said."""
    with socket.create_connection(address) as sock:
        sock.sendall(f"{name}\n".encode())
        room.is_full.wait()
        sock.sendall(f"hello from {name}\n".encode())
        with sock.makefile("r", encoding="utf-8") as lines:
            return [lines.readline().strip() for _ in range(len(NAMES) - 1)]


def main() -> None:
    green.hook_gevent()
    room = Room()
    server = StreamServer(("127.0.0.1", 0), room.welcome)
    server.start()
    with gevent.Timeout(20):
        talkers = [gevent.spawn(talk, name, server.address, room) for name in NAMES]
        gevent.joinall(talkers, raise_error=True)
    for name, talker in zip(NAMES, talkers, strict=True):
        print(f"{name} heard {', '.join(sorted(talker.value))}")
    server.stop()
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


if __name__ == "__main__":
    main()
