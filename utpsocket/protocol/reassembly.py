"""Bytes that arrived: in order and ready for the application, or behind a hole and kept.

Payloads in order stay views of the datagrams that they came in until finish_delivery(), which copies what is left over.
Payloads behind a hole are copied at once, since the memory of the datagrams is about to be used again.

The bit mask of the packets behind a hole is the selective ack itself: bit 0 stands for next_seq + 1, which is ack + 2.

Sources: BEP 29 "selective ack"; docs/protocol.md §4, §7.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from utpsocket.protocol.native import native_or

# How many packets behind a hole are kept at most: it bounds what a flood of tiny packets costs. Eight times libutp's.
MAX_OUT_OF_ORDER_PACKETS: Final = 8_192
# How far the packet that fills a hole may go beyond the window: refused, it would keep the window closed for ever. By
# feel: more than a packet.
_OVERDRAFT_BYTES: Final = 4_096
# Kept pieces are joined up to this size: tiny packets would otherwise cost far more memory than they hold. By feel.
_SMALL_PIECE_BYTES: Final = 16_384
# Payloads that are smaller on average are joined when a hole is filled: to handle each costs more than to copy it. By
# feel.
_JOINED_BELOW_BYTES: Final = 256


def join_views_in_python(views: list[memoryview]) -> bytes:
    """The content of all of them, one after the other."""
    return b"".join(views)


join_views: Final = native_or(join_views_in_python, "join_views")


class Insertion(Enum):
    """What became of a packet."""

    IN_ORDER = "in order"
    OUT_OF_ORDER = "ahead of a hole"
    DUPLICATE = "seen before"
    OUT_OF_WINDOW = "outside of the window"


IN_ORDER: Final = Insertion.IN_ORDER  # module-level names, as in states.py
OUT_OF_ORDER: Final = Insertion.OUT_OF_ORDER
DUPLICATE: Final = Insertion.DUPLICATE
OUT_OF_WINDOW: Final = Insertion.OUT_OF_WINDOW


class Reassembly:
    """The incoming byte stream.

    next_seq             the first sequence number that is not yet received in order
    capacity_bytes       most bytes that are kept for the application
    ready_bytes          received in order and not delivered
    out_of_order_bytes   received behind a hole
    delivered_bytes      delivered in all
    fin_seq              sequence number of the peer's FIN, None before it has come
    is_fin_reached       the FIN and everything before it have come; ready bytes may still wait
    ready                the payloads that may be delivered now, in order
    sack_bits            the packets behind a hole; bit 0 stands for next_seq + 1, which is ack + 2. BEP 29 "selective
                         ack"

    _own_pieces              how many of `ready`, from the first on, are copies of ours; the rest is borrowed
    _out_of_order            copies of the payloads behind a hole, by sequence number; None without any, since an
                             empty dict keeps the memory for as many as it has held
    _advertised_end_offset   where in the stream the window ended before it was made smaller, 0 if it never was
    """

    __slots__ = (
        "_advertised_end_offset",
        "_out_of_order",
        "_own_pieces",
        "capacity_bytes",
        "delivered_bytes",
        "fin_seq",
        "is_fin_reached",
        "next_seq",
        "out_of_order_bytes",
        "ready",
        "ready_bytes",
        "sack_bits",
    )

    def __init__(self, next_seq: int, capacity_bytes: int) -> None:
        self.next_seq = next_seq
        self.capacity_bytes = capacity_bytes
        self._advertised_end_offset = 0
        self.fin_seq: int | None = None
        self.is_fin_reached = False
        self.ready_bytes = 0
        self.out_of_order_bytes = 0
        self.delivered_bytes = 0
        self.ready: list[memoryview] = []
        self._own_pieces = 0
        self._out_of_order: dict[int, bytes] | None = None
        self.sack_bits = 0

    @property
    def window_bytes(self) -> int:
        """The free part of the buffer, bytes behind a hole subtracted: what may be advertised. docs/protocol.md §7."""
        window = self.capacity_bytes - self.ready_bytes - self.out_of_order_bytes
        return window if window > 0 else 0

    @property
    def room_bytes(self) -> int:
        """Most bytes that are taken behind a hole: the window, or what is left of a larger one that was advertised."""
        return max(0, self._limit_bytes - self.ready_bytes - self.out_of_order_bytes)

    @property
    def _limit_bytes(self) -> int:
        return max(self.capacity_bytes, self._advertised_end_offset - self.delivered_bytes)

    def resize(self, capacity_bytes: int) -> None:
        """Have another capacity from now on. Bytes that the window allowed before are still taken: RFC 9293 §3.8.6, a
        receiver does not shrink its window. If they were refused, a hole could never be filled, and what is kept behind
        it would keep the window closed.
        """
        if capacity_bytes < self.capacity_bytes:
            self._advertised_end_offset = max(self._advertised_end_offset, self.delivered_bytes + self.capacity_bytes)
        self.capacity_bytes = capacity_bytes

    @property
    def has_out_of_order(self) -> bool:
        """Whether there are packets behind a hole: acks then carry a selective ack."""
        return self.sack_bits != 0

    def append_run(self, count: int, payloads: list[memoryview], total_bytes: int) -> None:
        """`count` packets arrived in order, with none behind a hole: the caller has checked."""
        self.next_seq += count
        self.ready += payloads
        self.ready_bytes += total_bytes

    def insert(self, seq: int, payload: memoryview, *, is_fin: bool) -> Insertion:
        """One packet arrived, in any order. Returns what became of it."""
        ahead = seq - self.next_seq
        if ahead < 0 or (ahead and self.sack_bits >> (ahead - 1) & 1):
            return DUPLICATE
        if self.is_fin_reached or (
            self.fin_seq is not None and (seq > self.fin_seq or (is_fin and seq != self.fin_seq))
        ):
            return OUT_OF_WINDOW
        size = len(payload)
        if not ahead:
            if self.ready_bytes + self.out_of_order_bytes + size > self._limit_bytes + _OVERDRAFT_BYTES:
                return OUT_OF_WINDOW
            if is_fin:
                self._set_fin(seq)
            self._accept(payload)
            if self.sack_bits:
                self._take_contiguous()
            return IN_ORDER
        if ahead > MAX_OUT_OF_ORDER_PACKETS or size > self.room_bytes:
            return OUT_OF_WINDOW
        if is_fin:
            self._set_fin(seq)
        if self._out_of_order is None:
            self._out_of_order = {}
        self._out_of_order[seq] = bytes(payload)
        self.out_of_order_bytes += size
        self.sack_bits |= 1 << (ahead - 1)
        return OUT_OF_ORDER

    def _set_fin(self, fin_seq: int) -> None:
        """The stream ends with this number: packets beyond are dropped."""
        self.fin_seq = fin_seq
        if self.sack_bits >> max(0, fin_seq - self.next_seq):
            held = self._out_of_order
            assert held is not None
            for seq in [seq for seq in held if seq > fin_seq]:
                self.out_of_order_bytes -= len(held.pop(seq))
            self._out_of_order = held or None
            self.sack_bits &= (1 << max(0, fin_seq - self.next_seq)) - 1

    def _accept(self, payload: memoryview) -> None:
        if self.next_seq == self.fin_seq:
            self.is_fin_reached = True
        self.next_seq += 1
        if payload:
            self.ready.append(payload)
            self.ready_bytes += len(payload)

    def _take_contiguous(self) -> None:
        """next_seq has moved by one, so bit 0 stands for next_seq itself: take over what follows without a hole."""
        mask, held = self.sack_bits, self._out_of_order
        count = (~mask & (mask + 1)).bit_length() - 1  # ones at its end
        if count:
            assert held is not None
            payloads = list(map(held.pop, range(self.next_seq, self.next_seq + count)))
            if not held:
                self._out_of_order = None
            total_bytes = sum(map(len, payloads))
            self.next_seq += count
            if self.fin_seq is not None and self.next_seq > self.fin_seq:
                self.is_fin_reached = True
            self.out_of_order_bytes -= total_bytes
            self.ready_bytes += total_bytes
            if total_bytes < count * _JOINED_BELOW_BYTES:
                payloads = [b"".join(payloads)]
            self.ready += [memoryview(payload) for payload in payloads if payload]
        self.sack_bits = mask >> (count + 1)

    def finish_delivery(self, count: int) -> None:
        """The application took the first `count` bytes. The rest is copied, so that nothing is borrowed any more."""
        self.delivered_bytes += count
        self.ready_bytes = ready_bytes = self.ready_bytes - count
        if not ready_bytes:
            self.ready = []
            self._own_pieces = 0
            return
        left = self.ready
        # How many pieces were taken, and so many bytes of the next one: counted from the nearer end.
        if count < ready_bytes:
            taken = 0
            while count >= len(left[taken]):
                count -= len(left[taken])
                taken += 1
        else:
            taken, count = len(left), -ready_bytes
            while count < 0:
                taken -= 1
                count += len(left[taken])
        own = left[taken : self._own_pieces]
        borrowed = left[max(taken, self._own_pieces) :]
        if count:
            if own:
                own[0] = own[0][count:]
            else:
                borrowed[0] = borrowed[0][count:]
        if borrowed:
            if own and len(own[-1]) < _SMALL_PIECE_BYTES:
                borrowed.insert(0, own.pop())
            own.append(memoryview(join_views(borrowed)))
        self.ready = own
        self._own_pieces = len(own)

    def clear(self) -> None:
        """Forget all content: the application will not read it."""
        self.ready = []
        self._own_pieces = 0
        self._out_of_order = None
        self.sack_bits = 0
        self.ready_bytes = 0
        self.out_of_order_bytes = 0
        if not self.is_fin_reached:
            self.fin_seq = None  # a FIN behind a hole is forgotten as well: it is not acked, so it comes again

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        assert self.ready_bytes == sum(map(len, self.ready))
        held = self._out_of_order or {}
        assert self.out_of_order_bytes == sum(map(len, held.values()))
        assert self.sack_bits == sum(1 << (seq - self.next_seq - 1) for seq in held)
        assert self.out_of_order_bytes + self.ready_bytes <= self._limit_bytes + _OVERDRAFT_BYTES
        assert len(held) <= MAX_OUT_OF_ORDER_PACKETS and self._out_of_order != {}
        assert self._own_pieces <= len(self.ready)
        assert self._own_pieces <= 2 + 2 * self._limit_bytes // _SMALL_PIECE_BYTES
