"""What the engine needs of Linux: system calls, UDP sockets, epoll, file descriptors."""

from __future__ import annotations
