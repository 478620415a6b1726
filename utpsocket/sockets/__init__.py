"""What a program uses: class socket, the functions around it, and their calls to the engine."""

from __future__ import annotations
