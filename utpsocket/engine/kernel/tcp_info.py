"""TCP_INFO of a TCP connection, under the names of the fields of ConnectionStats.

Any thread may call. Sources: tcp(7); Linux's include/uapi/linux/tcp.h, struct tcp_info, which only grows at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.originals import struct
from utpsocket.protocol.states import State

if TYPE_CHECKING:
    from utpsocket.protocol.layout import Layout

# More than is read below; getsockopt() returns what the kernel has.
_MAX_INFO_BYTES: Final = 255
_STATES: Final = {
    1: State.CONNECTED.value,
    2: State.SYN_SENT.value,
    3: State.SYN_RECEIVED.value,
    4: State.CONNECTED.value,  # FIN_WAIT1, FIN_WAIT2: one side has finished
    5: State.CONNECTED.value,
    6: State.TIME_WAIT.value,
    8: State.CONNECTED.value,  # CLOSE_WAIT, LAST_ACK, CLOSING
    9: State.CONNECTED.value,
    10: "listening",
    11: State.CONNECTED.value,
}
_U32: Final[Layout[tuple[int]]] = struct.Struct("=I")
_U64: Final[Layout[tuple[int]]] = struct.Struct("=Q")
_NEVER_MEASURED: Final = 0xFFFF_FFFF


class TcpFigures(TypedDict, total=False):
    """The fields of ConnectionStats that TCP_INFO answers."""

    state: str
    rto_us: int
    packet_bytes: int
    in_flight_bytes: int
    lost_packets: int
    rtt_us: int
    cwnd_bytes: int
    retransmitted_packets: int
    acked_bytes: int
    received_bytes: int
    unsent_bytes: int
    min_rtt_us: int
    received_packets: int
    sent_packets: int
    sent_bytes: int
    peer_window_bytes: int
    our_window_bytes: int


def read(tcp: Socket) -> TcpFigures:
    """The figures of a TCP socket. Raises OSError."""
    info = Socket.getsockopt(tcp, stdlib.IPPROTO_TCP, stdlib.TCP_INFO, _MAX_INFO_BYTES)
    return parse(info)


def parse(info: bytes) -> TcpFigures:
    """The same of the bytes of struct tcp_info. A field that an older kernel does not have is 0."""
    if not info or info[0] not in _STATES:
        # TCP_CLOSE, before a connection or after it: after it the counter of packets (tcpi_segs_out) is not 0.
        return {"state": State.CLOSED.value if _u32(info, 136) else "unconnected"}
    state = _STATES[info[0]]
    if state == "listening":
        return {"state": state}
    segment_bytes, min_rtt_us = _u32(info, 16), _u32(info, 148)
    return {
        "state": state,
        "rto_us": _u32(info, 8),
        "packet_bytes": segment_bytes,
        "in_flight_bytes": _u32(info, 24) * segment_bytes,
        "lost_packets": _u32(info, 32),
        "rtt_us": _u32(info, 68),
        "cwnd_bytes": _u32(info, 80) * segment_bytes,
        "retransmitted_packets": _u32(info, 100),
        "acked_bytes": _u64(info, 120),
        "received_bytes": _u64(info, 128),
        "unsent_bytes": _u32(info, 144),
        "min_rtt_us": 0 if min_rtt_us == _NEVER_MEASURED else min_rtt_us,
        "received_packets": _u32(info, 152),
        "sent_packets": _u32(info, 156),
        "sent_bytes": _u64(info, 200) - _u64(info, 208),
        "peer_window_bytes": _u32(info, 228),
        "our_window_bytes": _u32(info, 232),
    }


def _u32(info: bytes, offset: int) -> int:
    return _U32.unpack_from(info, offset)[0] if len(info) >= offset + 4 else 0


def _u64(info: bytes, offset: int) -> int:
    return _U64.unpack_from(info, offset)[0] if len(info) >= offset + 8 else 0
