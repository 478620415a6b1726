"""How our packets are written: which numbers, window and timestamps stand in which header.

What leaves is decided elsewhere. What we send is what every implementation takes (docs/protocol.md §5): no extension
but the selective ack, and that on STATE packets only; padding on path MTU probes and repeated SYNs; and pieces.

BEP 29 "header format", "packet loss"; docs/protocol.md §2, §5, §6.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol import runs
from utpsocket.protocol.flights import Flight
from utpsocket.protocol.fragmentation import compose_pieces
from utpsocket.protocol.handshake import ACKS_SYN_ACK
from utpsocket.protocol.packet import (
    DATA,
    FIN,
    HEADER_BYTES,
    LARGE_SYN_BYTES,
    RESET,
    STATE,
    SYN,
    compose_lone,
    encode,
    pad,
)
from utpsocket.protocol.receivehalf import CAPABILITY_SACK_FROM_PACKETS, ReceiveHalf
from utpsocket.protocol.runs import Address, Transmit, compose
from utpsocket.protocol.sendbuffer import BLOCK_BYTES
from utpsocket.protocol.sendhalf import SendHalf

_KEEPALIVE_PROBE: Final = b"\0"  # never read: its place in the stream has been filled before


class Composer:
    """Writes the packets of one connection. What a method returns must be sent: the ack in it counts as sent.

    send_id   connection id of the packets that we send
    """

    __slots__ = ("_addr", "_receive", "_send", "send_id")

    def __init__(self, addr: Address, send: SendHalf, receive: ReceiveHalf) -> None:
        self._addr = addr
        self._send = send
        self._receive = receive
        self.send_id = 0

    def flight(self, flight: Flight, *, now: int) -> Transmit:
        """DATA packets, or our FIN."""
        send, receive = self._send, self._receive
        reassembly = receive.reassembly
        # With packets behind a hole the ack in it is not the last word: the peer needs a selective ack.
        window_bytes = receive.window_bytes if reassembly.sack_bits else receive.take_ack()
        if receive.unanswered_at:
            receive.on_late_answer(now=now)
        if receive.message_at:
            receive.on_answer(now=now)
        count, size = flight.count, flight.last_payload_bytes
        if count == 1 and size and not flight.probe_bytes:
            block, start = send.buffer.locate(flight.offset)
            if start + size <= BLOCK_BYTES:
                data = compose_lone(
                    self.send_id,
                    now,
                    receive.difference_us,
                    window_bytes,
                    flight.seq,
                    reassembly.next_seq - 1,
                    block,
                    start,
                    start + size,
                )
                return Transmit(
                    self._addr, data, datagram_bytes=HEADER_BYTES + size, may_fragment=not flight.dont_fragment
                )
        header = encode(
            FIN if flight.seq == send.fin_seq else DATA,
            self.send_id,
            timestamp_us=now,
            difference_us=receive.difference_us,
            window_bytes=window_bytes,
            seq=flight.seq,
            ack=reassembly.next_seq - 1,
        )
        total_bytes = flight.total_bytes
        if not total_bytes:
            return Transmit(self._addr, header)
        if count > 1:
            size = flight.payload_bytes
        if flight.probe_bytes:
            header = pad(header, flight.probe_bytes - HEADER_BYTES - size)
        if count > 1 and runs.SENDS_SPANS:
            transmit = Transmit(
                self._addr,
                b"",
                datagram_bytes=size + HEADER_BYTES,
                count=count,
                may_fragment=not flight.dont_fragment,
            )
            spans = send.buffer.spans(flight.offset, total_bytes)
            transmit.lend(header, flight.seq, spans, flight.last_payload_bytes + HEADER_BYTES)
            return transmit
        payloads = send.buffer.segments(flight.offset, size, total_bytes)
        return Transmit(
            self._addr,
            compose(header, flight.seq, payloads) if count > 1 else header + payloads[0],
            datagram_bytes=size + len(header),
            count=count,
            may_fragment=not flight.dont_fragment,
            is_mtu_probe=flight.probe_bytes > 0,
        )

    def pieces(self, flight: Flight, *, now: int) -> Transmit:
        """A packet too large for the path, in pieces."""
        send, receive = self._send, self._receive
        header = encode(
            STATE,
            self.send_id,
            timestamp_us=now,
            difference_us=receive.difference_us,
            window_bytes=receive.window_bytes,
            seq=send.flights.next_seq,
            ack=receive.ack,
        )
        payload = b"".join(send.buffer.segments(flight.offset, flight.last_payload_bytes, flight.total_bytes))
        data, segment, count = compose_pieces(header, flight.seq, payload, send.mtu.floor_bytes)
        return Transmit(self._addr, data, datagram_bytes=segment, count=count, may_fragment=True)

    def syn_ack(self, *, now: int) -> Transmit:
        """The answer to a SYN. Its sequence number is the same each time, whatever has been sent since: it is where our
        stream begins.
        """
        return self._state(self._send.flights.una_seq, self._receive.reassembly.next_seq - 1, b"", now=now)

    def state(self, *, is_keepalive: bool, now: int) -> Transmit:
        """A STATE: an ack, with a selective ack if packets are out of order; or a keepalive, whose ack is one too
        low.
        """
        receive = self._receive
        receive_ack = receive.reassembly.next_seq - 1
        if is_keepalive and not receive.unacked_packets and not receive.reassembly.sack_bits:
            receive_ack -= 1
        has_sack = receive.reassembly.sack_bits or receive.received_packets >= CAPABILITY_SACK_FROM_PACKETS
        sack = receive.sack() if has_sack else b""
        return self._state(self._send.flights.next_seq, receive_ack, sack, now=now)

    def keepalive_probe(self, *, now: int) -> Transmit:
        """DATA that the peer has acked before, so that it acks again if it is alive (keepalive.py)."""
        receive = self._receive
        window_bytes = receive.window_bytes
        header = encode(
            DATA,
            self.send_id,
            timestamp_us=now,
            difference_us=receive.difference_us,
            window_bytes=window_bytes,
            seq=self._send.flights.next_seq - 1,
            ack=receive.ack,
        )
        if not receive.reassembly.has_out_of_order:
            receive.on_ack_sent(window_bytes)
        return Transmit(self._addr, header + _KEEPALIVE_PROBE)

    def _state(self, seq: int, ack: int, sack: bytes, *, now: int) -> Transmit:
        receive = self._receive
        header = encode(
            STATE,
            self.send_id,
            timestamp_us=now,
            difference_us=receive.difference_us,
            window_bytes=receive.take_ack(is_state=True),
            seq=seq,
            ack=ack,
            sack=sack,
        )
        return Transmit(self._addr, header)

    def syn(self, recv_id: int, syn_seq: int, *, is_large: bool = False, now: int) -> Transmit:
        """A SYN; all later packets carry its id + 1. is_large: padded to LARGE_SYN_BYTES."""
        self.send_id = (recv_id + 1) & 0xFFFF
        header = encode(
            SYN,
            recv_id,
            timestamp_us=now,
            difference_us=0,
            window_bytes=self._receive.window_bytes,
            seq=syn_seq,
            ack=ACKS_SYN_ACK,
        )
        if is_large:
            return Transmit(self._addr, pad(header, LARGE_SYN_BYTES - HEADER_BYTES), may_fragment=True)
        return Transmit(self._addr, header)

    def reset(self, connection_id: int, seq: int, ack: int, *, now: int) -> Transmit:
        """A RESET. docs/protocol.md §4."""
        header = encode(RESET, connection_id, timestamp_us=now, difference_us=0, window_bytes=0, seq=seq, ack=ack)
        return Transmit(self._addr, header)
