"""A torrent fetched from a peer over uTP, as BitTorrent clients do it; the wire protocol is compat.peers.bittorrent's.

Run: python3 -m examples.bittorrent                               a seed and a leech in this process
     python3 -m examples.bittorrent TORRENT OUT HOST PORT         a single-file torrent from any client's seed
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
from pathlib import Path

import utpsocket as socket
from compat.peers import bittorrent
from utpsocket import stats

DATA = random.Random(3).randbytes(3_000_000)


def download(meta: bittorrent.Metainfo, out: Path, address: tuple[str, int]) -> int:
    """The number of pieces that were fetched, each verified by its SHA-1."""
    with socket.create_connection(address) as sock:
        return bittorrent.fetch(bittorrent.Wire(sock, meta.info_hash, we_dialled=True), meta, out)


def seed(listener: socket.socket, meta: bittorrent.Metainfo, path: Path) -> None:
    connection, _ = listener.accept()
    with connection:
        bittorrent.serve(bittorrent.Wire(connection, meta.info_hash, we_dialled=False), meta, path)


def exchange(folder: Path) -> None:
    original, copy = folder / "original", folder / "copy"
    original.write_bytes(DATA)
    meta = bittorrent.Metainfo.of_file(original)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seeding = threading.Thread(target=seed, args=(listener, meta, original))
        seeding.start()
        pieces = download(meta, copy, listener.getsockname())
        seeding.join()
    print(f"{pieces} pieces, {'intact' if copy.read_bytes() == DATA else 'WRONG'}")


def main(arguments: list[str]) -> None:
    if arguments:
        torrent, out, host, port = arguments
        print(f"{download(bittorrent.Metainfo.load(Path(torrent)), Path(out), (host, int(port)))} pieces")
    else:
        with tempfile.TemporaryDirectory() as folder:
            exchange(Path(folder))
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


if __name__ == "__main__":
    main(sys.argv[1:])
