"""Every trace is run from the middle of the sequence numbers and across their wrap."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[20_000, 65_534], ids=["middle", "wrap"])
def base(request: pytest.FixtureRequest) -> int:
    """The first of our sequence numbers."""
    return int(request.param)
