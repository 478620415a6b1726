"""What passes over TCP and cannot pass over uTP, each with the reason. Every entry must fail (xfail, strict).

The key is `file.py::test_name`, or `file.py::test_name[parameters]` without the network's name.
"""

from __future__ import annotations

from typing import Final

EXPECTED_OVER_UTP: Final[dict[str, str]] = {}
