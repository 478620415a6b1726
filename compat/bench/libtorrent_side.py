"""One side of a measurement over libtorrent, uTP only: a seed that listens, a leech that dials and downloads.

    PYTHON libtorrent_side.py listen|connect SETTINGS

SETTINGS is JSON: `torrent` and `folder` (a path each; the seed's folder holds the file), `port` to dial. Runs in the
virtual environment that has libtorrent, with the modules it needs on PYTHONPATH (subjects.py). See agreement.py for
what it says and hears. The figure includes what any BitTorrent download does: every piece is hashed and written to a
file, here in memory (tmpfs).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import libtorrent as lt
from agreement import Orders, Watch, emit
from libtorrent_session import listening_port, session

LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 0.005
# With the 208 KiB of UDP buffer that the system gives, and short queues, it sits in timeouts: 20 MB/s, not 130.
SETTINGS = {
    "recv_socket_buffer_size": 4 << 20,
    "send_socket_buffer_size": 4 << 20,
    "send_buffer_watermark": 4 << 20,
    "send_buffer_low_watermark": 512 << 10,
    "max_out_request_queue": 2000,
}


def main(role: str, settings_text: str) -> None:
    settings = json.loads(settings_text)
    orders = Orders()
    running = session(LOOPBACK, tcp=False)
    running.apply_settings(SETTINGS)
    port = listening_port(running, "udp")
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(settings["torrent"])
    parameters.save_path = settings["folder"]
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused | lt.torrent_flags.duplicate_is_error)
    torrent = running.add_torrent(parameters)
    if role == "listen":
        wait_until_whole(torrent)
        emit({"port": port})
    emit({"ready": True})
    orders.wait_for("go")
    if role == "listen":
        watch = Watch()
        orders.wait_for("stop")
        orders.report(watch.stop())
        return
    # Half a second passes before a leech is unchoked: BitTorrent's business, and no measure of its transport.
    torrent.connect_peer((LOOPBACK, settings["port"]))
    while not (earlier_bytes := torrent.status().total_wanted_done):
        time.sleep(LOOK_SECONDS)
    watch = Watch()
    wait_until_whole(torrent)
    orders.report({**watch.stop(), "bytes": torrent.status().total_wanted_done, "earlier_bytes": earlier_bytes})


def wait_until_whole(torrent: Any) -> None:
    while not torrent.status().is_seeding:
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
