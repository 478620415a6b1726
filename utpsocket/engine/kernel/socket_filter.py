"""A classic BPF program on the UDP socket, by which the kernel drops datagrams while a port is flooded.

The program sees a datagram before it is queued. What it drops takes no room in the receive buffer, wakes no thread and
costs a fraction of a microsecond. It drops

    always       what is not uTP (too short, another version or type), and RESETs with no id that is known here
    at random    most of the SYNs, and of other packets with no id that is known here. Each passes with a set
                 probability, since the first packet of a new connection may be among them
    separately   large SYNs, with a probability of their own: initiators of this library repeat their SYN that way
    separately   SYNs of sources that send many; a source is identified by a hash of its address and port, of 12 bits

Offsets count from the UDP header, which is where a filter of a UDP socket begins.

Only the engine's thread calls. Sources: socket(7) SO_ATTACH_FILTER; Linux, Documentation/networking/filter.rst.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel import bpf
from utpsocket.engine.kernel.bpf import (
    AND,
    IF_EQUAL,
    IF_GREATER,
    IF_GREATER_EQUAL,
    JUMP,
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_LENGTH,
    LOAD_WORD,
    MULTIPLY,
    RETURN,
    SHIFT_RIGHT,
    TO_X,
    XOR_X,
    Instruction,
)
from utpsocket.protocol.packet import HEADER_BYTES, LARGE_SYN_BYTES, SYN_BYTE, VERSION, PacketType

# A probability of 1, in parts of 2³², as BPF draws random numbers of 32 bits.
PROBABILITY_ONE: Final = 1 << 32
_SOCKADDR_IN_BYTES: Final = 16
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_UDP_BYTES: Final = 8
# Ranges of ids, by feel. Each takes up to five instructions, of which Linux takes 4,096 (BPF_MAXINSNS), and fewer if
# net.core.optmem_max is small.
_MAX_RANGES: Final = 256
_NETWORK: Final = 0xFFF00000  # SKF_NET_OFF: counts from the IP header
_SOURCE_BITS: Final = 12
SOURCES: Final = 1 << _SOURCE_BITS  # hashes
_RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_ALL: Final = 0xFFFFFFFF

_OTHERS: Final = tuple(
    type << 4 | VERSION for type in (PacketType.DATA, PacketType.STATE, PacketType.FIN, PacketType.RESET)
)
_DROP: Final = (RETURN, 0, 0, 0)
_PASS: Final = (RETURN, 0, 0, _ALL)


class HeavySources(NamedTuple):
    """Sources that send many SYNs.

    multiplier   of the hash, odd; drawn anew now and then, so that no source can choose to have another's hash
    sources      their hashes, see source_hash()
    probability  so many SYNs of 2³² from these pass
    """

    multiplier: int
    sources: frozenset[int]
    probability: int


def attach(
    sock: Socket,
    ids: Iterable[int] | None,
    syn_probability: int,
    stray_probability: int,
    heavy: HeavySources,
    large_syn_probability: int = PROBABILITY_ONE,
) -> bool:
    """Attach the program; False where the kernel does not take it.

    ids                     that packets of connections here may carry; None: packets with any id pass
    syn_probability         so many SYNs of 2³² pass
    stray_probability       likewise, of packets with another id
    heavy                   sources that send many SYNs
    large_syn_probability   likewise, of SYNs of LARGE_SYN_BYTES and more
    """
    wanted = program(ids, syn_probability, stray_probability, heavy, large_syn_probability)
    try:
        bpf.attach(sock, _SO_ATTACH_FILTER, wanted)
    except OSError:
        return False
    return True


def source_hash(name: bytes, multiplier: int) -> int:
    """The hash of a source's address (struct sockaddr_in or sockaddr_in6), as the program computes it."""
    address = name[4:8] if len(name) == _SOCKADDR_IN_BYTES else name[20:24]
    mixed = int.from_bytes(address, "big") ^ (name[2] << 8 | name[3])
    return (mixed * multiplier & 0xFFFFFFFF) >> (32 - _SOURCE_BITS)


def detach(sock: Socket) -> None:
    """Remove the program, if there is one."""
    try:
        sock.setsockopt(stdlib.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError:  # there is none
        pass


def program(
    ids: Iterable[int] | None,
    syn_probability: int,
    stray_probability: int,
    heavy: HeavySources,
    large_syn_probability: int,
) -> list[Instruction]:
    """The program; see attach()."""
    large = [(LOAD_WORD, 0, 0, _RANDOM), *_pass_with_probability(large_syn_probability)]
    syn = [
        (LOAD_LENGTH, 0, 0, 0),
        (IF_GREATER_EQUAL, 0, len(large), _UDP_BYTES + LARGE_SYN_BYTES),
        *large,
        (LOAD_WORD, 0, 0, _RANDOM),
        *_pass_with_probability(syn_probability),
    ]
    if heavy.sources:
        found = [(LOAD_WORD, 0, 0, _RANDOM), *_pass_with_probability(heavy.probability)]
        search = _search(_ranges(heavy.sources)[:_MAX_RANGES])
        syn = [
            (LOAD_BYTE, 0, 0, _NETWORK),
            (AND, 0, 0, 0xF0),
            (IF_EQUAL, 2, 0, 0x60),
            (LOAD_WORD, 0, 0, _NETWORK + 12),  # IPv4's source address
            (JUMP, 0, 0, 1),
            (LOAD_WORD, 0, 0, _NETWORK + 20),  # the last part of IPv6's
            (TO_X, 0, 0, 0),
            (LOAD_HALF, 0, 0, 0),  # the source port
            (XOR_X, 0, 0, 0),
            (MULTIPLY, 0, 0, heavy.multiplier),
            (SHIFT_RIGHT, 0, 0, 32 - _SOURCE_BITS),
            *_with_jumps(search, found_at=len(search) + len(syn), not_found_at=len(search)),
            *syn,
            *found,
        ]
    code: list[Instruction] = [
        (LOAD_LENGTH, 0, 0, 0),
        (IF_GREATER_EQUAL, 1, 0, _UDP_BYTES + HEADER_BYTES),
        _DROP,
        (LOAD_BYTE, 0, 0, _UDP_BYTES),
        (IF_EQUAL, len(_OTHERS) + 2, 0, SYN_BYTE),
        *((IF_EQUAL, len(_OTHERS) - index, 0, first) for index, first in enumerate(_OTHERS)),
        _DROP,
        (JUMP, 0, 0, len(syn)),
        *syn,
    ]
    ranges = None if ids is None else _ranges(ids)
    if ranges is None or len(ranges) > _MAX_RANGES:
        return [*code, _PASS]
    search = _search(ranges)
    return [
        *code,
        (LOAD_HALF, 0, 0, _UDP_BYTES + 2),
        *_with_jumps(search, found_at=len(search), not_found_at=len(search) + 1),
        _PASS,
        (LOAD_BYTE, 0, 0, _UDP_BYTES),
        (IF_EQUAL, 0, 1, PacketType.RESET << 4 | VERSION),
        _DROP,
        (LOAD_WORD, 0, 0, _RANDOM),
        *_pass_with_probability(stray_probability),
    ]


def _pass_with_probability(probability: int) -> list[Instruction]:
    """Pass if the random number in the accumulator is less, else drop."""
    if probability >= PROBABILITY_ONE:
        return [_PASS]
    return [(IF_GREATER_EQUAL, 1, 0, max(0, probability)), _PASS, _DROP]


def _ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Ids as ranges, first and last, in order."""
    ranges: list[tuple[int, int]] = []
    for one in sorted(set(ids)):
        if ranges and one == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], one
        else:
            ranges.append((one, one))
    return ranges


def _search(ranges: list[tuple[int, int]]) -> list[Instruction | bool]:
    """Find the accumulator in one of the ranges: True and False stand for the jumps to the two outcomes. It is a binary
    tree, since a conditional jump reaches over at most 255 instructions, an unconditional one over any number.
    """
    if not ranges:
        return [False]
    if len(ranges) == 1:
        first, last = ranges[0]
        return [(IF_GREATER_EQUAL, 0, 2, first), (IF_GREATER, 1, 0, last), True, False]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    return [(IF_GREATER_EQUAL, 0, 1, ranges[middle][0]), (JUMP, 0, 0, len(below)), *below, *above]


def _with_jumps(search: list[Instruction | bool], *, found_at: int, not_found_at: int) -> list[Instruction]:
    """The search with its outcomes replaced by jumps, to instructions counted from its beginning."""
    return [
        (JUMP, 0, 0, (found_at if one else not_found_at) - index - 1) if isinstance(one, bool) else one
        for index, one in enumerate(search)
    ]
