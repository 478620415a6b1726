"""The types of what programs pass to the methods of the C class socket, for type checkers: at run time there are none.

The C class checks each argument, with its own errors, before our code looks into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from _typeshed import ReadableBuffer as ReadableBuffer
    from _typeshed import WriteableBuffer as WriteableBuffer

    GivenAddress: TypeAlias = tuple[Any, ...] | str | ReadableBuffer
    """An address for bind() or connect(). Of AF_INET and AF_INET6 the C class accepts a tuple alone; what it takes for
    a host and for a port has more than one type.
    """
    OptionValue: TypeAlias = int | ReadableBuffer | None
    """What setsockopt() sets; None where a length follows."""
    Ancillary: TypeAlias = Iterable[tuple[int, int, ReadableBuffer]]
    """For sendmsg()."""
    Positional: TypeAlias = tuple[Any, ...]
    """The arguments of a call as they were written: those by position."""
    Named: TypeAlias = dict[str, Any]
    """Those by name."""
