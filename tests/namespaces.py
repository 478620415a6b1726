"""Programs in a network of their own: a namespace that exists for as long as the program runs.

Two devices, `left` and `right`, are joined by a cable. Addresses need no time to settle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT, RIGHT = "fe80::10", "fe80::11"  # link-local addresses of the two devices
LEFT_GLOBAL, LEFT_V4 = "2001:db8::1", "10.0.5.1"
_CABLE = f"""
set -e
ip link set lo up
ip link add left type veth peer name right
ip link set left addrgenmode none
ip link set right addrgenmode none
ip link set left up
ip link set right up
ip addr add {LEFT}/64 dev left nodad
ip addr add {RIGHT}/64 dev right nodad
ip addr add {LEFT_GLOBAL}/64 dev left nodad
ip addr add {LEFT_V4}/24 brd + dev left
"""


def run_in_a_network(program: str, *arguments: str, setup: str = "", timeout_s: float = 150) -> str:
    """What this Python program prints there. `setup`: shell commands beforehand, of which none may fail."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("needs root and iproute2: network namespaces")
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f'{_CABLE}{setup}\nexec "$@"', "sh", sys.executable, "-", *arguments],
        input=program,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
