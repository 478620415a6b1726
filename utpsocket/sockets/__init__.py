"""What a program touches: class socket, the functions around it, and what they say to the engine."""

from __future__ import annotations
