"""Libraries that need changes to accept uTP sockets: ssl, multiprocessing, uvloop."""

from __future__ import annotations
