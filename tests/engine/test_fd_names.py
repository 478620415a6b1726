"""Names that identify the other end survive the kernel's limit of 108 bytes."""

from __future__ import annotations

import pytest

from utpsocket.engine.kernel import fd_names
from utpsocket.protocol import Address

FULL = "1111:2222:3333:4444:5555:6666:7777:8888"


@pytest.mark.parametrize(
    "address",
    [
        ("127.0.0.1", 65_535),
        ("::1", 1, 0, 0),
        (FULL, 65_535, 0, 0),
        ("fe80::1", 80, 0, 2),
        ("fe80::1234:5678:9abc:def0", 65_535, 0, (1 << 32) - 1),
        ("::1", 80, 5, 0),
        ("::ffff:192.0.2.1", 80, 0, 0),
    ],
)
def test_addresses_survive(address: Address) -> None:
    others = [address] if len(address) == 4 and address[2] else [address, (FULL, 65_535, 0, 0)]
    for other in others:
        name = fd_names.encode((1 << 63) - 1, address, other, 1 << 22)
        assert len(name) <= 108
        found = fd_names.decode(name)
        assert found is not None
        assert found[:2] == ((1 << 63) - 1, 1 << 22)
        assert found[2:] == (address, other)


@pytest.mark.parametrize(
    "name", [b"", b"\0other", b"\0utp:", b"\0utp:1:2:x|y", b"\0utp:1:2:=!|=!#", b"\0utp:1:2:[::1|x#", "text", None]
)
def test_other_names_are_not_ours(name: object) -> None:
    assert fd_names.decode(name) is None


def test_administrators_can_read_them() -> None:
    name = fd_names.encode(0xC0FFEE, ("127.0.0.1", 6881), ("192.0.2.7", 50_000), 1234)
    assert name.startswith(b"\0utp:c0ffee:1234:127.0.0.1:6881|192.0.2.7:50000#")
    name = fd_names.encode_listener(0xC0FFEE, ("fe80::1", 6881, 0, 3), 1234)
    assert name.startswith(b"\0utp:c0ffee:1234:[fe80::1]:6881%3|*#")
