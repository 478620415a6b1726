"""Congestion control: what a controller must do, and which controllers there are.

A controller is called for acks, losses and timeouts and has a window in bytes. Each is a file here; the socket options
UTP_CONGESTION and TCP_CONGESTION choose one by name.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.congestion.controller import Controller
from utpsocket.protocol.congestion.cubic import Cubic
from utpsocket.protocol.congestion.ledbat import Ledbat
from utpsocket.protocol.congestion.ledbat_plus_plus import LedbatPlusPlus
from utpsocket.protocol.congestion.reno import Reno

__all__ = ["CONTROLLERS", "DEFAULT_CONTROLLER", "Controller"]

CONTROLLERS: Final[dict[str, type[Controller]]] = {
    controller.NAME: controller for controller in (Ledbat, LedbatPlusPlus, Cubic, Reno)
}
# The one that is fair to its own kind and gives way to TCP whatever the buffer is: tests/simulation/lab.txt.
DEFAULT_CONTROLLER: Final = LedbatPlusPlus.NAME
