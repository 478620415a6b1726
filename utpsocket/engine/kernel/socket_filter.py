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
from utpsocket.engine.interpreter.originals import ctypes, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
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
_LOAD_LENGTH: Final = 0x80  # BPF_LD | BPF_W | BPF_LEN
_LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
_LOAD_HALF: Final = 0x28  # BPF_LD | BPF_H | BPF_ABS
_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25
_IF_GREATER_EQUAL: Final = 0x35
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_MULTIPLY: Final = 0x24
_SHIFT_RIGHT: Final = 0x74
_XOR_X: Final = 0xAC  # BPF_ALU | BPF_XOR | BPF_X
_TO_X: Final = 0x07  # BPF_MISC | BPF_TAX
_NETWORK: Final = 0xFFF00000  # SKF_NET_OFF: counts from the IP header
_SOURCE_BITS: Final = 12
SOURCES: Final = 1 << _SOURCE_BITS  # hashes
_RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_ALL: Final = 0xFFFFFFFF
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
_PROGRAM: Final = struct.Struct("@HP")  # struct sock_fprog

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
_OTHERS: Final = tuple(
    type << 4 | VERSION for type in (PacketType.DATA, PacketType.STATE, PacketType.FIN, PacketType.RESET)
)
_DROP: Final = (_RETURN, 0, 0, 0)
_PASS: Final = (_RETURN, 0, 0, _ALL)


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
    code = b"".join(_INSTRUCTION.pack(*one) for one in wanted)
    memory = ctypes.create_string_buffer(code, len(code))
    argument = _PROGRAM.pack(len(code) // _INSTRUCTION.size, ctypes.addressof(memory))
    try:
        sock.setsockopt(stdlib.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
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
    large = [(_LOAD_WORD, 0, 0, _RANDOM), *_pass_with_probability(large_syn_probability)]
    syn = [
        (_LOAD_LENGTH, 0, 0, 0),
        (_IF_GREATER_EQUAL, 0, len(large), _UDP_BYTES + LARGE_SYN_BYTES),
        *large,
        (_LOAD_WORD, 0, 0, _RANDOM),
        *_pass_with_probability(syn_probability),
    ]
    if heavy.sources:
        found = [(_LOAD_WORD, 0, 0, _RANDOM), *_pass_with_probability(heavy.probability)]
        search = _search(_ranges(heavy.sources)[:_MAX_RANGES])
        syn = [
            (_LOAD_BYTE, 0, 0, _NETWORK),
            (_AND, 0, 0, 0xF0),
            (_IF_EQUAL, 2, 0, 0x60),
            (_LOAD_WORD, 0, 0, _NETWORK + 12),  # IPv4's source address
            (_JUMP, 0, 0, 1),
            (_LOAD_WORD, 0, 0, _NETWORK + 20),  # the last part of IPv6's
            (_TO_X, 0, 0, 0),
            (_LOAD_HALF, 0, 0, 0),  # the source port
            (_XOR_X, 0, 0, 0),
            (_MULTIPLY, 0, 0, heavy.multiplier),
            (_SHIFT_RIGHT, 0, 0, 32 - _SOURCE_BITS),
            *_with_jumps(search, found_at=len(search) + len(syn), not_found_at=len(search)),
            *syn,
            *found,
        ]
    code: list[Instruction] = [
        (_LOAD_LENGTH, 0, 0, 0),
        (_IF_GREATER_EQUAL, 1, 0, _UDP_BYTES + HEADER_BYTES),
        _DROP,
        (_LOAD_BYTE, 0, 0, _UDP_BYTES),
        (_IF_EQUAL, len(_OTHERS) + 2, 0, SYN_BYTE),
        *((_IF_EQUAL, len(_OTHERS) - index, 0, first) for index, first in enumerate(_OTHERS)),
        _DROP,
        (_JUMP, 0, 0, len(syn)),
        *syn,
    ]
    ranges = None if ids is None else _ranges(ids)
    if ranges is None or len(ranges) > _MAX_RANGES:
        return [*code, _PASS]
    search = _search(ranges)
    return [
        *code,
        (_LOAD_HALF, 0, 0, _UDP_BYTES + 2),
        *_with_jumps(search, found_at=len(search), not_found_at=len(search) + 1),
        _PASS,
        (_LOAD_BYTE, 0, 0, _UDP_BYTES),
        (_IF_EQUAL, 0, 1, PacketType.RESET << 4 | VERSION),
        _DROP,
        (_LOAD_WORD, 0, 0, _RANDOM),
        *_pass_with_probability(stray_probability),
    ]


def _pass_with_probability(probability: int) -> list[Instruction]:
    """Pass if the random number in the accumulator is less, else drop."""
    if probability >= PROBABILITY_ONE:
        return [_PASS]
    return [(_IF_GREATER_EQUAL, 1, 0, max(0, probability)), _PASS, _DROP]


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
        return [(_IF_GREATER_EQUAL, 0, 2, first), (_IF_GREATER, 1, 0, last), True, False]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_IF_GREATER_EQUAL, 0, 1, ranges[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]


def _with_jumps(search: list[Instruction | bool], *, found_at: int, not_found_at: int) -> list[Instruction]:
    """The search with its outcomes replaced by jumps, to instructions counted from its beginning."""
    return [
        (_JUMP, 0, 0, (found_at if one else not_found_at) - index - 1) if isinstance(one, bool) else one
        for index, one in enumerate(search)
    ]
