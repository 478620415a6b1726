"""The type of a struct.Struct together with the types of its fields. Read by type checkers alone, never imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias, TypeVar

_Bytes: TypeAlias = bytes | bytearray | memoryview
_Fields_co = TypeVar("_Fields_co", covariant=True)


class Layout(Protocol[_Fields_co]):
    """A struct.Struct whose fields are of these types: typeshed has it return Any."""

    @property
    def size(self) -> int:
        """As Struct.size."""

    def pack(self, *fields: object) -> bytes:
        """As Struct.pack()."""

    def pack_into(self, buffer: bytearray | memoryview, offset: int, *fields: object) -> None:
        """As Struct.pack_into()."""

    def unpack(self, data: _Bytes, /) -> _Fields_co:
        """As Struct.unpack()."""

    def unpack_from(self, buffer: _Bytes, offset: int = 0) -> _Fields_co:
        """As Struct.unpack_from()."""

    def iter_unpack(self, data: _Bytes, /) -> Iterator[_Fields_co]:
        """As Struct.iter_unpack()."""
