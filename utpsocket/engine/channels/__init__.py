"""What carries one socket's bytes: uTP, TCP, or the one of them that connects first."""

from __future__ import annotations
