"""Libraries that have to be told of uTP sockets: ssl, multiprocessing, uvloop."""

from __future__ import annotations
