"""Names that tell who is at the other end survive the kernel's limit of 107 bytes."""

from __future__ import annotations

import pytest

from utpsocket.engine import names

FULL = "1111:2222:3333:4444:5555:6666:7777:8888"


@pytest.mark.parametrize(
    "address",
    [
        ("127.0.0.1", 65_535),
        ("::1", 1, 0, 0),
        (FULL, 65_535, 0, 0),
        ("fe80::1%eth0", 80, 0, 2),
        ("::ffff:192.0.2.1", 80, 0, 0),
    ],
)
def test_addresses_survive(address: names.Address) -> None:
    for other in (address, (FULL, 65_535, 0, 0)):
        name = names.encode((1 << 63) - 1, address, other, (1 << 22) - 1)
        assert len(name) <= 107
        found = names.decode(name)
        assert found is not None
        assert found[:2] == ((1 << 63) - 1, (1 << 22) - 1)
        assert found[2:] == (address, other)


@pytest.mark.parametrize(
    "name", [b"", b"\0other", b"\0utp:", b"\0utp:1:2:x|y", b"\0utp:1:2:=!,1,6|=!,1,6", "text", None]
)
def test_other_names_are_nobodys(name: object) -> None:
    assert names.decode(name) is None
