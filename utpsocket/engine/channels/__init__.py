"""What carries one socket's bytes: over uTP, over TCP, or over whichever connects first."""

from __future__ import annotations
