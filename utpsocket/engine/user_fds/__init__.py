"""What is known of the users' file descriptors, in any process, and what is done to them."""

from __future__ import annotations
