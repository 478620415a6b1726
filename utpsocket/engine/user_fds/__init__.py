"""The users' file descriptors: what is known of them, in this process and in others, and what is done to them."""

from __future__ import annotations
