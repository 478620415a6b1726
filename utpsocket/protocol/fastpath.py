"""A whole run of DATA packets at once, or a lone ack, if nothing about it is special.

These are shortcuts for most packets. Their effect is that of Connection._handle_packet() for each of the packets
(tests/properties/test_batches.py); they leave to it whatever is not ordinary.

Sources: docs/design.md §4 ("the path by packets is the specification").
"""

from __future__ import annotations

from utpsocket.protocol.packet import HEADER_BYTES, read_fields, unwrap
from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.runs import Run
from utpsocket.protocol.sendhalf import SendHalf
from utpsocket.protocol.times import TIMESTAMP_MASK
from utpsocket.protocol.timestamps import UNKNOWN_DIFFERENCE_US, on_run_timestamps, on_timestamps
from utpsocket.protocol.validation import ACK_SLACK


def handle(send: SendHalf, receive: ReceiveHalf, recv_id: int, run: Run, *, now: int) -> bool:
    """Handle a clean run, of more than one packet, of an established connection. Returns False if it must be handled
    packet by packet; then nothing has been done.
    """
    data = run.data
    connection_id, timestamp_us, difference_us, window_bytes, seq16, ack16 = read_fields(data)
    reassembly, paws = receive.reassembly, receive.paws
    count = run.count
    last_bytes = run.last_bytes
    total_bytes = (count - 1) * run.datagram_bytes + last_bytes - HEADER_BYTES * count
    if (
        seq16 != reassembly.next_seq & 0xFFFF
        or reassembly.has_out_of_order
        or reassembly.fin_seq is not None
        or receive.is_discarding
        or total_bytes > reassembly.window_bytes
        or last_bytes == HEADER_BYTES
        or run.datagram_bytes == HEADER_BYTES
        or connection_id != recv_id
    ):
        return False
    flights = send.flights
    una_seq = flights.una_seq
    ack_next_seq = unwrap(ack16, una_seq) + 1
    if not una_seq - ACK_SLACK - flights.max_outstanding <= ack_next_seq <= flights.next_seq:
        return False
    timestamps, next_seq = run.timestamps(), reassembly.next_seq
    ack_paws = send.paws
    if ack_paws.is_armed or ack_next_seq >= ack_paws.mark_seq:
        if ack_next_seq >= una_seq and not ack_paws.check_timestamp(ack_next_seq, 0, timestamp_us, timestamps):
            return False
    if paws.is_armed or next_seq + count >= paws.mark_seq:
        if not paws.check_timestamp(next_seq, count, timestamp_us, timestamps):
            return False
        paws.on_run(next_seq, count, timestamp_us, timestamps, now=now)
    delay_us = on_timestamps(send, receive, timestamp_us, difference_us, now=now)
    if flights.queue or ack_next_seq != una_seq or window_bytes != send.peer.window_bytes:
        echo_us = (timestamp_us - delay_us) & TIMESTAMP_MASK if delay_us else -1
        send.on_ack(ack_next_seq, window_bytes, None, delay_us, echo_us, is_state=False, now=now)
    if timestamps is not None:
        on_run_timestamps(send, receive, timestamps, now=now)
    if ack_paws.is_armed or ack_next_seq >= ack_paws.mark_seq:
        ack_paws.on_acked(flights.una_seq, timestamp_us, now=now)
    receive.on_run(count, run.payloads(), total_bytes, now=now)
    return True


def handle_lone(send: SendHalf, receive: ReceiveHalf, recv_id: int, data: memoryview, *, now: int) -> bool:
    """handle() of a clean run of one packet."""
    connection_id, timestamp_us, difference_us, window_bytes, seq16, ack16 = read_fields(data)
    reassembly, paws, ack_paws, flights = receive.reassembly, receive.paws, send.paws, send.flights
    next_seq, una_seq = reassembly.next_seq, flights.una_seq
    payload_bytes = len(data) - HEADER_BYTES
    ack_next_seq = una_seq + ((ack16 - una_seq + 0x8000) & 0xFFFF) - 0x7FFF  # unwrap(), and one more
    if (
        connection_id != recv_id
        or seq16 != next_seq & 0xFFFF
        or reassembly.sack_bits
        or reassembly.fin_seq is not None
        or receive.is_discarding
        or payload_bytes > reassembly.capacity_bytes - reassembly.ready_bytes - reassembly.out_of_order_bytes
        or not una_seq - ACK_SLACK - flights.max_outstanding <= ack_next_seq <= flights.next_seq
    ):
        return False
    is_ack_marked = ack_paws.is_armed or ack_next_seq >= ack_paws.mark_seq
    if is_ack_marked and ack_next_seq >= una_seq:
        if not ack_paws.check_timestamp(ack_next_seq, 0, timestamp_us, None):
            return False
    if paws.is_armed or next_seq + 1 >= paws.mark_seq:
        if not paws.check_timestamp(next_seq, 1, timestamp_us, None):
            return False
        paws.on_run(next_seq, 1, timestamp_us, None, now=now)
    receive.received_at = now  # as on_timestamps()
    if timestamp_us:
        receive.difference_us = peer_delay_us = (now - timestamp_us) & TIMESTAMP_MASK
        send.controller.on_peer_delay(peer_delay_us)
    receive.peer_difference_us = delay_us = 0 if difference_us == UNKNOWN_DIFFERENCE_US else difference_us
    if flights.queue or ack_next_seq != una_seq or window_bytes != send.peer.window_bytes:
        if not send.on_ack_of_lone(ack_next_seq, window_bytes, delay_us, is_state=False, now=now):
            echo_us = (timestamp_us - delay_us) & TIMESTAMP_MASK if delay_us else -1
            send.on_ack(ack_next_seq, window_bytes, None, delay_us, echo_us, is_state=False, now=now)
    if is_ack_marked:
        ack_paws.on_acked(flights.una_seq, timestamp_us, now=now)
    receive.on_lone(data[HEADER_BYTES:], payload_bytes, now=now)
    return True


def handle_ack(send: SendHalf, receive: ReceiveHalf, recv_id: int, syn_seq: int, data: memoryview, *, now: int) -> bool:
    """Handle a lone STATE without extensions. Returns False as handle().

    syn_seq   of our SYN: an ack of that may be its repeated answer
    """
    connection_id, timestamp_us, difference_us, window_bytes, _, ack16 = read_fields(data)
    flights = send.flights
    una_seq = flights.una_seq
    ack_next_seq = una_seq + ((ack16 - una_seq + 0x8000) & 0xFFFF) - 0x7FFF  # unwrap(), and one more
    if (
        connection_id != recv_id
        or not una_seq - ACK_SLACK <= ack_next_seq <= flights.next_seq
        or (ack16 == syn_seq & 0xFFFF and not receive.received_packets)
    ):
        return False
    paws = send.paws
    if paws.is_armed and ack_next_seq >= una_seq and not paws.check_timestamp(ack_next_seq, 0, timestamp_us, None):
        return False
    delay_us = on_timestamps(send, receive, timestamp_us, difference_us, now=now)
    if not send.on_ack_of_lone(ack_next_seq, window_bytes, delay_us, is_state=True, now=now):
        echo_us = (timestamp_us - delay_us) & TIMESTAMP_MASK if delay_us else -1
        send.on_ack(ack_next_seq, window_bytes, None, delay_us, echo_us, is_state=True, now=now)
    if paws.is_armed or ack_next_seq >= paws.mark_seq:
        paws.on_acked(flights.una_seq, timestamp_us, now=now)
    return True
