"""One UDP port: its connections, who may come in, and what its connections share."""

from __future__ import annotations
