"""Which build runs: the compiled one, as wheels have it, or the pure one, of the same source (docs/design.md §14)."""

from __future__ import annotations

from typing import Final

from utpsocket.protocol import packet

IS_COMPILED: Final = not hasattr(packet.decode, "__code__")
"""Whether protocol/ and most of engine/ are compiled, and _native.c is there."""
BUILD: Final = "compiled" if IS_COMPILED else "pure"
"""The same for people."""
