"""The tests that pass over TCP and cannot pass over uTP, each with the reason. See compat.stdlib's."""

from __future__ import annotations

from typing import Final

from compat.stdlib.expectations import NO_URGENT_DATA, Expectation

EXPECTED: Final[tuple[Expectation, ...]] = (Expectation("waitress.test_wasyncore.*.test_handle_expt", NO_URGENT_DATA),)
