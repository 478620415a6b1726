"""The tests of gevent's that pass over TCP and cannot pass over uTP, each with the reason. See compat.stdlib's."""

from __future__ import annotations

from typing import Final

from compat.stdlib.expectations import Expectation

EXPECTED: Final[tuple[Expectation, ...]] = ()
