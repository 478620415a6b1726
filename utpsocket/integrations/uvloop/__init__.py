"""uvloop over uTP: its loop makes and drives sockets in C. Programs see utpsocket.loops."""

from __future__ import annotations
