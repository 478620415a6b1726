"""What passes over TCP and cannot pass over uTP, each with the reason. Every entry must fail (xfail, strict).

The key is `file.py::test_name`, or `file.py::test_name[parameters]` without the network's name.
"""

from __future__ import annotations

import os

NO_URGENT_DATA = "uTP has no urgent data; MSG_OOB is refused with EOPNOTSUPP"
NO_LOW_WATER_MARK = "poll ignores SO_RCVLOWAT on AF_UNIX, which is what the user's fd is"
DIES_WITH_THE_PROCESS = "the engine is a thread: what it has not sent when the process is killed is lost"
NO_BYTE_TO_LEAVE_UNREAD = (
    "after shutdown(SHUT_WR) nothing can be written as the user, so the kernel says end of file, not reset"
)
HAS_CONNECTION_IDS = "connection ids tell two connections between the same addresses apart"

EXPECTED_OVER_UTP: dict[str, str] = {
    "test_receiving.py::test_urgent_data": NO_URGENT_DATA,
    "test_receiving.py::test_low_water_mark_is_kept_by_poll": NO_LOW_WATER_MARK,
    "test_readiness.py::test_poll_after_shut_wr_then_peer_reset": NO_BYTE_TO_LEAVE_UNREAD,
    "test_ports.py::test_same_four_addresses_twice": HAS_CONNECTION_IDS,
}
if os.environ.get("UTPSOCKET_ENGINE") != "process":
    EXPECTED_OVER_UTP |= {
        "test_processes.py::test_sudden_death_delivers_what_the_kernel_had": DIES_WITH_THE_PROCESS,
        "test_processes.py::test_daemonizing_after_listen": DIES_WITH_THE_PROCESS + "; listen after the fork",
    }
