"""Classic BPF programs: their instructions, and how one is attached to a socket. Any thread may call.

Sources: Linux, Documentation/networking/filter.rst, linux/filter.h, linux/bpf_common.h; socket(7) SO_ATTACH_FILTER,
SO_ATTACH_REUSEPORT_CBPF.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import ctypes, struct
from utpsocket.engine.interpreter.originals import socket as stdlib

LOAD_LENGTH: Final = 0x80  # BPF_LD | BPF_W | BPF_LEN
LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
LOAD_HALF: Final = 0x28  # BPF_LD | BPF_H | BPF_ABS
LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP: Final = 0x05  # BPF_JMP | BPF_JA
IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_GREATER: Final = 0x25
IF_GREATER_EQUAL: Final = 0x35
RETURN: Final = 0x06  # BPF_RET | BPF_K
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
MULTIPLY: Final = 0x24
SHIFT_RIGHT: Final = 0x74
XOR_X: Final = 0xAC  # BPF_ALU | BPF_XOR | BPF_X
TO_X: Final = 0x07  # BPF_MISC | BPF_TAX
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
_PROGRAM: Final = struct.Struct("@HP")  # struct sock_fprog

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def attach(sock: Socket, option: int, program: Iterable[Instruction]) -> None:
    """Attach a program by a socket option that takes one. Raises OSError where the kernel does not take it."""
    code = b"".join(_INSTRUCTION.pack(*one) for one in program)
    memory = ctypes.create_string_buffer(code, len(code))
    argument = _PROGRAM.pack(len(code) // _INSTRUCTION.size, ctypes.addressof(memory))
    sock.setsockopt(stdlib.SOL_SOCKET, option, argument)
