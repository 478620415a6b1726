"""A connection that two threads use at once, one to send and one to receive, with TLS or without.

An SSLSocket may not be used so: OpenSSL's state has no lock before CPython 3.13. And it cannot end one half: unwrap()
waits for the peer's end and fails on data that comes before it. So TLS here is an SSLObject with buffers, and a lock
that is never held while a thread waits for the network.
"""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Final, Protocol

PIECE_BYTES: Final = 1 << 16  # of one call; by feel


class Stream(Protocol):
    """What a relay needs of a connection."""

    def fileno(self) -> int:
        """The descriptor to wait at, where has_received() says that nothing is there yet."""

    def has_received(self) -> bool:
        """Whether receive() has something without reading from the socket."""

    def receive(self) -> bytes | None:
        """Some bytes; b"" at the peer's end; None if what came was for TLS alone. Waits. Raises OSError."""

    def send(self, data: bytes) -> None:
        """Send all of it. Waits. Raises OSError."""

    def shut_down(self) -> None:
        """End our half. Raises OSError."""


class PlainStream:
    """Without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        """sock: connected and blocking"""
        self._sock = sock
        self.fileno = sock.fileno
        self.send = sock.sendall

    def has_received(self) -> bool:
        """See Stream."""
        return False

    def receive(self) -> bytes | None:
        """See Stream."""
        return self._sock.recv(PIECE_BYTES)

    def shut_down(self) -> None:
        """See Stream."""
        self._sock.shutdown(socket.SHUT_WR)


class TlsStream:
    """With TLS. One thread sends while another receives; closing is the caller's."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_name: str | None) -> None:
        """Do the handshake. Raises OSError, of which ssl.SSLError is a kind.

        sock         connected, and either blocking or with a time limit for each step of the handshake
        server_name  that the certificate must have; None: we are the server
        """
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_name is None, server_name)
        self._lock = threading.Lock()  # of the three above
        self._sending = threading.Lock()  # what TLS has put out is sent in that order
        self._received: list[bytes] = []  # decrypted before our end was sent
        self._is_at_end = False
        self.fileno = sock.fileno
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._feed(sock.recv(PIECE_BYTES))
            except ssl.SSLError:
                self._flush()  # the alert that says why
                raise
            else:
                break
        self._flush()

    @property
    def version(self) -> str:
        """Such as TLSv1.3."""
        return self._tls.version() or ""

    @property
    def cipher(self) -> str:
        """Its name."""
        cipher = self._tls.cipher()
        return cipher[0] if cipher else ""

    def has_received(self) -> bool:
        """See Stream."""
        with self._lock:
            return bool(self._received or self._is_at_end or self._tls.pending() or self._incoming.pending)

    def receive(self) -> bytes | None:
        """See Stream."""
        if not self.has_received():
            self._feed(self._sock.recv(PIECE_BYTES))
        with self._lock:
            data = self._received.pop(0) if self._received else self._decrypted()
        self._flush()  # a change of keys may have to be answered
        return data

    def send(self, data: bytes) -> None:
        """See Stream."""
        with self._lock:
            self._tls.write(data)
        self._flush()

    def shut_down(self) -> None:
        """See Stream: TLS's end, then the connection's."""
        with self._lock:
            while data := self._decrypted():  # else OpenSSL takes it for data that comes after the peer's end
                self._received.append(data)
            try:
                self._tls.unwrap()
            except ssl.SSLWantReadError:
                pass  # our end is in the buffer, the peer's has not come
        self._flush()
        self._sock.shutdown(socket.SHUT_WR)

    def _decrypted(self) -> bytes | None:
        if self._is_at_end:
            return b""
        try:
            data = self._tls.read(PIECE_BYTES)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            data = b""
        self._is_at_end = not data
        return data

    def _feed(self, data: bytes) -> None:
        with self._lock:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def _flush(self) -> None:
        with self._sending:
            with self._lock:
                data = self._outgoing.read()
            if data:
                self._sock.sendall(data)
