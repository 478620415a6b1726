"""Torrents exchanged with a real BitTorrent session: libtorrent with TCP switched off; our side is bittorrent.py.

Four conversations, by who has the file and who dials: we fetch from a seed, or serve a leech; as initiator, or dialled
by libtorrent, which is told of us. Pieces are verified by whoever receives them, and the file is compared here; the
session says of its peers what they are connected over, which must be uTP.

Beside transfers, with a seed at the other end: we end our direction, and it ends its own; we reset the connection, and
it drops the peer at once and serves the next connection; it closes, and we see that; 60 s of silence, in which nothing
but our keepalive's questions and its answers pass. What libtorrent has no words for is UNSAID, with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from compat.peers import provision
from compat.peers.bittorrent import Metainfo
from compat.peers.case import LOOPBACK_IPV6, Case, CaseFailed, Circumstances, Road, header_text, python_module, title
from compat.peers.children import REPOSITORY, Child, ChildFailed, Children
from compat.peers.impairment import Impairment
from compat.peers.libutp import HARSH, LOSSY, MB, SEED
from compat.peers.stream import seeded_blocks

NAME: Final = "libtorrent"
TITLES: Final = {"fetch": "fetch from a seed", "serve": "serve a leech"}
ROLES: Final = ("initiator", "acceptor")
UNSAID: Final = {
    "half-close by libtorrent": "its sessions close both directions at once, and read no more after the end of a peer",
    "bytes from libtorrent after our half-close": "a peer that has ended its direction is one that it disconnects",
    "reset by libtorrent": "a session that closes says FIN, and answers a packet of no connection with silence",
}
IDLE_SECONDS: Final = 60
KEEPALIVE: Final = (10, 4, 3)  # questions after 10 s of silence; unanswered, the connection ends long before the minute
SOON_SECONDS: Final = 15.0  # far less than libtorrent's own timeouts for a silent peer
AGAIN_SECONDS: Final = 2.0


def version() -> str:
    """Sets the peer up. Raises provision.Unavailable."""
    provision.libtorrent()
    return provision.LIBTORRENT_VERSION


def cases(*, quick: bool, size_bytes: int | None) -> list[Case]:
    sizes = [size_bytes] if size_bytes else [1 * MB] if quick else [1 * MB, 10 * MB, 50 * MB]
    roads: list[Impairment | None] = [None, LOSSY] if quick else [None, LOSSY, HARSH]
    found = [] if quick else [_act(role, "idle", kind) for role in ROLES for kind in ("fetch", "serve")]
    found += [
        _transfer(role, kind, size, road)
        for size in reversed(sizes)
        for road in roads
        for role in ROLES
        for kind in ("fetch", "serve")
        # Who dials matters little to 50 MB on a bad road, which take minutes: one way round is enough.
        if road is None or size < 50 * MB or (role == "initiator") == (kind == "fetch")
    ]
    if _has_ipv6():
        found += [
            dataclasses.replace(case, title=f"{case.title}, IPv6", host=LOOPBACK_IPV6)
            for case in found
            if case.kind in TITLES and case.bytes == sizes[0] and case.impairment in (None, LOSSY)
        ]
    return found + [_act(role, act, "fetch") for act in ("half_close", "reset", "stay") for role in ROLES]


def _transfer(role: str, kind: str, size: int, impairment: Impairment | None) -> Case:
    return Case(
        NAME,
        title(TITLES[kind], size, impairment),
        role,
        size,
        run=_exchange,
        kind=kind,
        impairment=impairment,
        waits=impairment is not None,
        seconds_allowed=60 + (8.0 if impairment else 3.0) * size / MB,
    )


def _act(role: str, act: str, kind: str) -> Case:
    """A case with an `act` of bittorrent.py's."""
    run, name = {
        "idle": (_exchange, f"idle {IDLE_SECONDS} s, {'seed' if kind == 'fetch' else 'leech'}"),
        "half_close": (_half_close, "half-close by us"),
        "reset": (_reset, "reset by us, and a new connection"),
        "stay": (_close, "closed by the seed"),
    }[act]
    return Case(
        NAME, name, role, 1 * MB, run=run, kind=f"{kind} {act}", waits=True, seconds_allowed=120, has_control=False
    )


def _has_ipv6() -> bool:
    """Whether this machine has ::1; Python may know of IPv6 where the kernel was told not to."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind((LOOPBACK_IPV6, 0))
    except OSError:
        return False
    return True


class _Swarm:
    """One file, one torrent, two sides and the road between them; `ours` is None where libtorrent plays both."""

    def __init__(self, case: Case, circumstances: Circumstances, children: Children, folder: Path, deadline: float):
        self._case, self._children, self._folder = case, children, folder
        kind, _, act = case.kind.partition(" ")
        our_end = "leech" if kind == "fetch" else "seed"
        peer_end = "seed" if kind == "fetch" else "leech"
        self.seeded, self.leeched = folder / "seed" / "file.bin", folder / "leech" / "file.bin"
        self.seeded.parent.mkdir()
        self.leeched.parent.mkdir()
        with self.seeded.open("wb") as file:
            file.writelines(seeded_blocks(case.bytes, seed=SEED))
        self._torrent = folder / "file.torrent"
        self._torrent.write_bytes(Metainfo.of_file(self.seeded).torrent())
        self._settings = {"act": act or "transfer", "keepalive": KEEPALIVE, "idle_seconds": IDLE_SECONDS}

        we_dial = case.role == "initiator"
        start_ours = self._session if circumstances.control else self._ours
        listens, dials = (self._session, start_ours) if we_dial else (start_ours, self._session)
        acceptor = listens(peer_end if we_dial else our_end)
        self.road = Road(children, case, circumstances, acceptor.expect("port", deadline=deadline), deadline=deadline)
        initiator = dials(our_end if we_dial else peer_end, case.host, str(self.road.port))
        self.ours, self.session = (initiator, acceptor) if we_dial else (acceptor, initiator)
        self.seed, self.leech = (self.session, self.ours) if kind == "fetch" else (self.ours, self.session)

    def _ours(self, end: str, *dial: str) -> Child:
        """bittorrent.py over utpsocket."""
        role, path = ("serve", self.seeded) if end == "seed" else ("fetch", self.leeched)
        way = ["dial", *dial] if dial else ["listen", self._case.host]
        arguments = [role, str(self._torrent), str(path), *way, header_text(self._settings)]
        return self._children.start(f"utpsocket {end}", python_module("bittorrent", *arguments))

    def _session(self, end: str, *dial: str) -> Child:
        script = str(REPOSITORY / "compat/peers/libtorrent_session.py")
        where = dial or (self._case.host,)
        folder = (self.seeded if end == "seed" else self.leeched).parent
        command = [str(provision.libtorrent()), script, end, str(self._torrent), str(folder), *where]
        return self._children.start(f"{NAME} {end}", command)

    def report(self, *, deadline: float) -> dict[str, Any]:
        """The leech's, once everything is there."""
        try:
            report: dict[str, Any] = self.leech.expect("report", deadline=deadline)
        except ChildFailed as error:
            stories = "; ".join(child.story() for child in (self.ours, self.session))
            raise CaseFailed(f"{error}; {stories}{self.road.story()}") from None
        if report["error"]:
            raise CaseFailed(f"leech: {report['error']}{self.road.story()}")
        return report

    def check(self) -> None:
        """Both ends have the same file, over uTP."""
        peer = self.session.expect("peer", deadline=time.monotonic() + SOON_SECONDS)
        if not peer["utp"]:
            raise CaseFailed(f"libtorrent says that it is not connected over uTP: {peer}")
        if _digest(self.seeded) != _digest(self.leeched):
            raise CaseFailed("the files differ")

    def go_on(self) -> None:
        """We have come to the point: libtorrent must have seen us, or it could not see us gone."""
        self.ours.expect("waiting", deadline=time.monotonic() + SOON_SECONDS)
        self.session.expect("peer", deadline=time.monotonic() + SOON_SECONDS)
        self.ours.tell({"go": True})

    def expect_gone(self) -> None:
        """The session has noticed that a connection ended."""
        try:
            self.session.expect("gone", deadline=time.monotonic() + SOON_SECONDS)
        except ChildFailed as error:
            raise CaseFailed(f"libtorrent keeps the peer: {error}{self.road.story()}") from None


@contextlib.contextmanager
def _swarm(case: Case, circumstances: Circumstances, deadline: float) -> Iterator[_Swarm]:
    with tempfile.TemporaryDirectory(prefix="utpsocket-peers-") as name, Children() as children:
        yield _Swarm(case, circumstances, children, Path(name), deadline)


def _exchange(case: Case, circumstances: Circumstances, deadline: float) -> float:
    """The leech gets everything; with silence in between, where the case says so."""
    with _swarm(case, circumstances, deadline) as swarm:
        report = swarm.report(deadline=deadline)
        swarm.session.expect("peer", deadline=deadline)
        swarm.leech.finish()
        swarm.leech.wait(deadline=time.monotonic() + 20)
        swarm.check()
        if swarm.seed is swarm.ours and not circumstances.control:
            swarm.seed.expect("served", deadline=time.monotonic() + 20)
        return float(report["seconds"])


def _half_close(case: Case, circumstances: Circumstances, deadline: float) -> float:
    """We have all pieces and end our direction: the session disconnects, which is an end of stream to us."""
    with _swarm(case, circumstances, deadline) as swarm:
        swarm.go_on()
        report = swarm.report(deadline=deadline)
        if report["ended"] != "eof":
            raise CaseFailed(f"after our end the stream ended with {report['ended']}{swarm.road.story()}")
        swarm.expect_gone()
        swarm.check()
        return float(report["seconds"])


def _reset(case: Case, circumstances: Circumstances, deadline: float) -> float:
    """The session drops the peer, which it would otherwise keep for minutes, and a new connection gets everything."""
    with _swarm(case, circumstances, deadline) as swarm:
        swarm.go_on()
        swarm.expect_gone()
        while case.role == "acceptor":
            swarm.session.tell({"connect": [case.host, swarm.road.port]})
            try:
                swarm.leech.expect("report", deadline=min(deadline, time.monotonic() + AGAIN_SECONDS))
                break
            except ChildFailed:
                if time.monotonic() > deadline or swarm.leech.process.poll() is not None:
                    break  # report() tells
        report = swarm.report(deadline=deadline)
        swarm.check()
        return float(report["seconds"])


def _close(case: Case, circumstances: Circumstances, deadline: float) -> float:
    """The session closes: an end of stream, or a reset, and nothing else."""
    with _swarm(case, circumstances, deadline) as swarm:
        swarm.go_on()
        swarm.session.tell({"pause": True})
        started = time.monotonic()
        report = swarm.report(deadline=deadline)
        if report["ended"] not in ("eof", "ConnectionResetError"):
            raise CaseFailed(f"the session closed and we saw {report['ended']}{swarm.road.story()}")
        return time.monotonic() - started


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
