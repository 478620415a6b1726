"""uvloop over uTP, whose loop makes and uses sockets in C. Programs use utpsocket.loops."""

from __future__ import annotations
