"""The engine in a process of its own: UTPSOCKET_ENGINE=process."""

from __future__ import annotations
