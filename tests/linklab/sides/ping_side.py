"""ICMP echoes ten times a second, which the other side's kernel answers.

    PYTHON ping_side.py source SETTINGS

Prints {"sent": …} for each, and {"t": when it was sent, "rtt_us": …} for those that are answered. Otherwise as
sides/__init__.py says.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Final

PING_SECONDS: Final = 0.1
HEADER: Final = struct.Struct(">BBHHH")
REQUEST, REPLY = 8, 0


def echo_request(identity: int, number: int) -> bytes:
    total = sum(struct.unpack(">4H", HEADER.pack(REQUEST, 0, 0, identity, number)))
    return HEADER.pack(REQUEST, 0, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF, identity, number)


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def main(settings: dict[str, Any]) -> None:
    icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    icmp.connect((settings["host"], 0))
    say(ready=True)
    due: float = json.loads(sys.stdin.readline())["origin"]
    sent: dict[int, float] = {}
    number, identity = 0, os.getpid() & 0xFFFF
    while True:
        timeout = due - time.monotonic()
        if timeout <= 0:
            number = (number + 1) & 0xFFFF
            sent[number] = time.monotonic()
            icmp.send(echo_request(identity, number))
            say(sent=sent[number])
            due += PING_SECONDS
        elif select.select([icmp], [], [], timeout)[0]:
            packet = icmp.recv(2048)
            now = time.monotonic()
            kind, _, _, whose, which = HEADER.unpack_from(packet, (packet[0] & 15) * 4)
            if kind == REPLY and whose == identity and which in sent:
                when = sent.pop(which)
                say(t=when, rtt_us=round((now - when) * 1e6))


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
