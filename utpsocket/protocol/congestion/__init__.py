"""Congestion control: what a controller must do, and which controllers there are.

A controller is called for acks, losses and timeouts and has a window in bytes. Each is a file here; the socket option
UTP_CONGESTION chooses one by name, as TCP_CONGESTION does on Linux.
"""

from __future__ import annotations

from utpsocket.protocol.congestion.controller import Controller
from utpsocket.protocol.congestion.ledbat import Ledbat

__all__ = ["CONTROLLERS", "Controller"]

# By the name that UTP_CONGESTION takes.
CONTROLLERS: dict[str, type[Ledbat]] = {"ledbat": Ledbat}
