"""The program's UDP socket at the address of a port, as the engine knows it.

The kernel deals what arrives at the address (engine/kernel/port_selector.py): uTP comes to the port, everything else to
the program's socket. Some of what looks like uTP is not: it has a connection id that no connection here has, or cannot
be decoded. The port offers it to the program's socket. No socket may send with another's address, so the datagram
travels in an envelope, sent from the address to itself: a token that this process alone knows, the sender's address,
and the datagram. The class socket takes it out (sockets/datagrams.py). The token begins with a zero, so the kernel
hands the envelope to the program's socket; once that is closed it comes back to the port.

What comes here and does not even look like uTP was sent to several sockets, by broadcast, and the program's got it as
well; or it was merged with uTP of the same sender (GRO), and is passed on.

Only the engine's thread calls what has no other note. Source: docs/design.md §6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.syscalls import packed_name
from utpsocket.protocol.packet import HEADER_BYTES, VERSION, PacketType

if TYPE_CHECKING:
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.protocol import Address, Run

_TO_OF_WILDCARD: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_FIRST_BYTES: Final = tuple(type << 4 | VERSION for type in PacketType)
_DONTWAIT: Final = int(stdlib.MSG_DONTWAIT)


@final
class DatagramHalf:
    """One program's UDP socket at a port's address.

    inode       of the program's socket
    token       begins each envelope
    is_merged   what is offered was received in one piece with other datagrams
    """

    __slots__ = ("_to", "inode", "is_merged", "token")

    def __init__(self, local: Address, inode: int, token: bytes) -> None:
        self.inode = inode
        self.token = token
        self.is_merged = False
        host = local[0]
        self._to: Address = (_TO_OF_WILDCARD.get(host, host), *local[1:])

    def offer(self, port: Port, run: Run) -> bool:
        """Hand the program a datagram that is of no use here. Returns False if it has it, or the kernel does not take
        it.
        """
        if not self.is_merged and (len(run.data) < HEADER_BYTES or run.data[0] not in _FIRST_BYTES):
            return False
        name = packed_name(run.addr)
        try:
            port.sock.sendto(b"".join((self.token, bytes([len(name)]), name, run.data)), _DONTWAIT, self._to)
        except OSError as error:
            reraise_handler_error(error)
            return False
        return True

    def is_envelope(self, run: Run) -> bool:
        """Whether an envelope has come back: the program's socket is closed."""
        return bytes(run.data[: len(self.token)]) == self.token
