"""UDP ports: their connections, which of them come in, and what connections share."""

from __future__ import annotations
