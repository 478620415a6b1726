"""Torrents exchanged with a real BitTorrent session: libtorrent with TCP switched off; our side is bittorrent.py.

initiator: we dial a libtorrent seed and download. acceptor: a libtorrent leech dials us and downloads. Pieces are
verified by whoever receives them, and the file is compared here; the session says of its peers what they are
connected over, which must be uTP.
"""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from compat.peers import provision
from compat.peers.bittorrent import Metainfo
from compat.peers.case import LOOPBACK_IPV6, Case, CaseFailed, Circumstances, Road, python_module, title
from compat.peers.children import REPOSITORY, Child, Children
from compat.peers.impairment import Impairment
from compat.peers.libutp import HARSH, LOSSY, MB, SEED
from compat.peers.stream import seeded_blocks

NAME: Final = "libtorrent"
OURS: Final = {"initiator": "fetch from a seed", "acceptor": "serve a leech"}


def version() -> str:
    """Sets the peer up. Raises provision.Unavailable."""
    provision.libtorrent()
    return provision.LIBTORRENT_VERSION


def cases(*, quick: bool, size_bytes: int | None) -> list[Case]:
    sizes = [size_bytes] if size_bytes else [1 * MB] if quick else [1 * MB, 10 * MB, 50 * MB]
    roads: list[Impairment | None] = [None, LOSSY] if quick else [None, LOSSY, HARSH]
    found = [
        Case(
            NAME,
            title(OURS[role], size, impairment),
            role,
            size,
            run=_exchange,
            impairment=impairment,
            waits=impairment is not None,
            seconds_allowed=60 + (8.0 if impairment else 1.0) * size / MB,
        )
        for size in reversed(sizes)
        for impairment in roads
        for role in ("initiator", "acceptor")
    ]
    if _has_ipv6():
        found += [
            dataclasses.replace(case, title=f"{case.title}, IPv6", host=LOOPBACK_IPV6)
            for case in found
            if case.bytes == sizes[0] and case.impairment in (None, LOSSY)
        ]
    return found


def _has_ipv6() -> bool:
    """Whether this machine has ::1; Python may know of IPv6 where the kernel was told not to."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind((LOOPBACK_IPV6, 0))
    except OSError:
        return False
    return True


def _exchange(case: Case, circumstances: Circumstances, deadline: float) -> float:
    ours = None if circumstances.control else case.role
    with tempfile.TemporaryDirectory(prefix="utpsocket-peers-") as name, Children() as children:
        folder = Path(name)
        seeded, leeched = folder / "seed" / "file.bin", folder / "leech" / "file.bin"
        seeded.parent.mkdir()
        leeched.parent.mkdir()
        with seeded.open("wb") as file:
            file.writelines(seeded_blocks(case.bytes, seed=SEED))
        torrent = folder / "file.torrent"
        torrent.write_bytes(Metainfo.of_file(seeded).torrent())

        if ours == "acceptor":
            seed = children.start(
                "utpsocket seed", python_module("bittorrent", "serve", str(torrent), str(seeded), case.host)
            )
        else:
            seed = _session(children, "seed", torrent, seeded.parent, case.host)
        road = Road(children, case, circumstances, seed.expect("port", deadline=deadline), deadline=deadline)
        dial = [case.host, str(road.port)]
        if ours == "initiator":
            command = python_module("bittorrent", "fetch", str(torrent), str(leeched), *dial)
            leech = children.start("utpsocket leech", command)
        else:
            leech = _session(children, "leech", torrent, leeched.parent, *dial)

        report: dict[str, Any] = leech.expect("report", deadline=deadline)
        if report["error"]:
            raise CaseFailed(f"leech: {report['error']}{road.story()}")
        session = seed if ours == "initiator" else leech
        peer = session.expect("peer", deadline=deadline)
        if not peer["utp"]:
            raise CaseFailed(f"libtorrent says that it is not connected over uTP: {peer}")
        leech.finish()
        leech.wait(deadline=time.monotonic() + 20)
        if _digest(seeded) != _digest(leeched):
            raise CaseFailed("the files differ")
        if ours == "acceptor":
            seed.expect("served", deadline=time.monotonic() + 20)
        return float(report["seconds"])


def _session(children: Children, role: str, torrent: Path, folder: Path, *dial: str) -> Child:
    script = str(REPOSITORY / "compat/peers/libtorrent_session.py")
    command = [str(provision.libtorrent()), script, role, str(torrent), str(folder), *dial]
    return children.start(f"{NAME} {role}", command)


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
