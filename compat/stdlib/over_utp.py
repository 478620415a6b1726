"""The one place that knows how a process is put over uTP, and how it is taken off again."""

from __future__ import annotations


def patch() -> None:
    """Put uTP in place of TCP. The engine, a thread, starts when the first socket needs it."""
    from utpsocket import monkey

    monkey.patch_from_environment()


def start() -> None:
    """Patch, with the engine started: every test then finds its thread when it begins."""
    patch()
    import utpsocket.engine

    utpsocket.engine.engine()


def shut_down() -> None:
    """End the engine: what it leaves behind after that is a leak."""
    import utpsocket.engine

    utpsocket.engine.shutdown()
