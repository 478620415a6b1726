"""What connections to the same peer have found out of the path together.

Sources: RFC 8899 §3 (9).
"""

from __future__ import annotations


class KnownPath:
    """What the connections to one peer have found out together. RFC 8899 §3 (9): they share a confirmed size. Kept by
    weak references, which an object of a compiled class cannot have: so this module is not compiled (_compile.py).

    confirmed_bytes   the largest that travelled unfragmentable, 0: none yet
    """

    __slots__ = ("__weakref__", "confirmed_bytes")

    def __init__(self) -> None:
        self.confirmed_bytes = 0
