"""What the engine uses of CPython itself: threads, the GIL, the garbage collector, forks, signals."""

from __future__ import annotations
