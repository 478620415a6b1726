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
from agreement import Orders, Watch, say
from libtorrent_session import listening_port, session

LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 0.005


def main(role: str, settings_text: str) -> None:
    settings = json.loads(settings_text)
    orders = Orders()
    running = session(LOOPBACK, tcp=False)
    port = listening_port(running, "udp")
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(settings["torrent"])
    parameters.save_path = settings["folder"]
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused | lt.torrent_flags.duplicate_is_error)
    torrent = running.add_torrent(parameters)
    if role == "listen":
        wait_until_whole(torrent)
        say({"port": port})
    say({"ready": True})
    orders.wait_for("go")
    watch = Watch()
    if role == "listen":
        orders.wait_for("stop")
        orders.report(watch.stop())
    else:
        torrent.connect_peer((LOOPBACK, settings["port"]))
        wait_until_whole(torrent)
        orders.report({**watch.stop(), "bytes": torrent.status().total_wanted_done})


def wait_until_whole(torrent: Any) -> None:
    while not torrent.status().is_seeding:
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
