"""Either side of a flow of libtorrent, uTP only. What it reads and prints: sides/__init__.py.

    PYTHON torrent_side.py sink|source SETTINGS

Runs in the virtual environment that has libtorrent. The source is a seed that dials the sink, a leech; the file is
zeros, so that neither side needs it from the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import libtorrent as lt

FILE_BYTES: Final = 640 << 20  # four minutes at 20 Mbit/s
PIECE_BYTES: Final = 1 << 20
SINK_SECONDS: Final = 0.05
SOURCE_SECONDS: Final = 0.1


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def session(listen: str) -> Any:
    return lt.session(
        {
            "listen_interfaces": listen,
            "enable_outgoing_tcp": False,
            "enable_incoming_tcp": False,
            "enable_outgoing_utp": True,
            "enable_incoming_utp": True,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "out_enc_policy": 2,
            "in_enc_policy": 2,
            "allow_multiple_connections_per_ip": True,
            # Otherwise a connection is given up when one packet was sent three times in vain.
            "utp_num_resends": 20,
            "mixed_mode_algorithm": 0,
            # As in compat/bench: otherwise it waits for its own queues.
            "recv_socket_buffer_size": 4 << 20,
            "send_socket_buffer_size": 4 << 20,
            "send_buffer_watermark": 4 << 20,
            "send_buffer_low_watermark": 512 << 10,
            "max_out_request_queue": 2000,
            "request_queue_time": 30,
            "alert_mask": 0,
        }
    )


def zeros() -> Any:
    digest = hashlib.sha1(bytes(PIECE_BYTES)).digest()
    info = {
        b"name": b"zeros",
        b"length": FILE_BYTES,
        b"piece length": PIECE_BYTES,
        b"pieces": digest * (FILE_BYTES // PIECE_BYTES),
    }
    return lt.torrent_info(lt.bdecode(lt.bencode({b"info": info})))


def main(role: str, settings: dict[str, Any]) -> None:
    address = settings["host"], settings["port"]
    running = session("{}:{}".format(*address) if role == "sink" else "0.0.0.0:0")
    parameters = lt.add_torrent_params()
    parameters.ti = zeros()
    parameters.save_path = tempfile.mkdtemp(prefix=f"{role}-", dir=settings["folder"])
    if role == "source":
        with open(Path(parameters.save_path) / "zeros", "wb") as file:
            file.truncate(FILE_BYTES)
        parameters.flags |= lt.torrent_flags.seed_mode
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused | lt.torrent_flags.duplicate_is_error)
    torrent = running.add_torrent(parameters)
    say(ready=True)
    if role == "sink":
        while True:
            time.sleep(SINK_SECONDS)
            received_bytes = torrent.status().total_payload_download
            say(t=time.monotonic(), bytes=[received_bytes], cpu_seconds=round(time.process_time(), 3))
    origin = json.loads(sys.stdin.readline())["origin"]
    time.sleep(max(0.0, origin + settings["start"] - time.monotonic()))
    torrent.connect_peer(address)
    while time.monotonic() < origin + settings["end"]:
        time.sleep(SOURCE_SECONDS)
        say(t=time.monotonic(), stream=0, cpu_seconds=round(time.process_time(), 3))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
