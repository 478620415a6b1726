"""What the engine needs of CPython itself, and what it must not do to it."""

from __future__ import annotations
