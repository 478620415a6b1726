"""What carries one socket's bytes, whichever transport it is: the interface of Bridge, Relay and Attempt.

    Bridge    over uTP (utp.py)
    Relay     over kernel TCP (tcp.py)
    Attempt   a connect() that only TCP is still tried for (race.py); it ends in a Relay or in an error

The loop has one dict of them, by the cookie of the socket's identity (Loop.channels). Commands look a channel up there
and use what is declared here, so they do not ask which of the three it is.

Only the engine's thread calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from utpsocket.engine.user_fds.socket_state import Identity
    from utpsocket.protocol import Connection
    from utpsocket.protocol.report import Figures


class Channel(Protocol):
    """Moves bytes between the engine's end of a socket's pair and the network.

    Source: docs/design.md §2, §5.
    """

    identity: Identity
    """What the class socket and the engine both know of the socket."""
    cookie: int
    """The key in Loop.channels: the identity's cookie at the time the channel was made. The identity has another one if
    the program connects the same socket again. A bridge whose socket TCP has taken over has the negative of it until it
    is gone.
    """

    @property
    def connection(self) -> Connection | None:
        """The uTP connection.

        Returns: the connection; None where TCP carries the bytes.
        Source: docs/design.md §3.
        """

    @property
    def is_user_fd_open(self) -> bool:
        """Whether any process has the user's fd open, as far as the events so far show.

        Returns: True or False.
        Source: docs/sockets.md §1, §4.
        """

    @property
    def can_end_unnoticed(self) -> bool:
        """Whether the channel may end now without an errno for the program or a RESET for the peer.

        Returns: True or False.
        Source: docs/sockets.md §4.
        """

    @property
    def is_flushed(self) -> bool:
        """Whether everything that the program wrote is acked (uTP) or with the kernel (TCP), or never will be.

        Returns: True or False.
        Source: docs/sockets.md §4; socket(7) SO_LINGER.
        """

    def figures(self) -> Figures:
        """What utpsocket.info() returns about the connection, at this instant.

        Returns: the fields of ConnectionStats (protocol/report.py) in their order, as plain values.
        Raises: nothing.
        Source: protocol/report.py; tcp(7) TCP_INFO.
        """

    def flush_progress(self) -> tuple[bool, int, int, bool]:
        """How far the delivery of what the program wrote has come, for the end of a process.

        Returns: whether the end of the process waits for this channel; bytes not acked; bytes acked since the
            beginning; whether the peer is alive and does not read. Over TCP "acked" is "taken by the kernel".
        Raises: nothing.
        Source: docs/sockets.md §4.
        """

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """Call back once, on the engine's thread, as soon as is_flushed; perhaps at once.

        Parameters:
            callback: called without arguments.
        Raises: nothing.
        Source: socket(7) SO_LINGER.
        """

    def sync_user_side(self) -> None:
        """Take in what the program has done to its fd by now (written, shut down, closed) without waiting for epoll.

        Raises: nothing.
        Source: docs/sockets.md §3.
        """

    def sync_network_side(self) -> None:
        """Take in what the network has brought by now, without waiting for epoll.

        Raises: nothing.
        Source: docs/sockets.md §3.
        """

    def apply_options(self) -> None:
        """The program has set socket options: those of identity.settings that an established connection can follow take
        effect.

        Raises: OSError where the kernel refuses an option.
        Source: setsockopt(2); socket(7); tcp(7).
        """

    def finish(self) -> None:
        """The process ends: read what the program wrote, and send a FIN after it, though its fd may stay open.

        Raises: nothing.
        Next: flush_progress() or when_flushed(); abort() if it takes too long.
        Source: docs/sockets.md §4; docs/protocol.md §12.
        """

    def abort(self) -> None:
        """The process does not wait any longer: the peer gets a RESET. See is_flushed.

        Raises: nothing.
        Source: docs/sockets.md §4; docs/protocol.md §12.
        """

    def terminate(self, code: int) -> None:
        """End at once in whatever state this is: the peer gets a RESET, the program the error.

        May be called again where terminate() itself has failed.

        Parameters:
            code: errno that the program's calls raise.
        Raises: OSError where a system call of the end fails; then call it again.
        Source: docs/sockets.md §9.
        """

    def fail(self, error: BaseException) -> None:
        """An exception came out of the work for this channel (faults.py): terminate() with the errno for it.

        Parameters:
            error: the exception.
        Raises: as terminate().
        Source: docs/design.md §2.
        """

    def forget_readiness(self) -> None:
        """After an exception anywhere: ask the kernel and the timers anew, whatever was known.

        Raises: nothing.
        Source: docs/design.md §9.
        """

    def close_fds(self) -> None:
        """Close the fds without anything else: in a forked child, or at the end of the engine.

        Raises: nothing.
        Source: docs/sockets.md §4.
        """

    def detach_fds(self) -> None:
        """Forget the fds without closing them: the program has closed them, and their numbers may be reused.

        Raises: nothing.
        Source: docs/sockets.md §4.
        """
