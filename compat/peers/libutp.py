"""Conversations with libutp (npm utp-native), in both roles, on good roads and bad ones.

The sides are utp_native/peer.cjs and stream.py; both report what they sent and received, and this file is the judge:
each side's received bytes are the other's sent bytes, by count and by sha256.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from compat.peers import provision
from compat.peers.case import (
    LOOPBACK,
    Case,
    CaseFailed,
    Circumstances,
    Road,
    header_text,
    python_module,
    title,
)
from compat.peers.children import REPOSITORY, Child, ChildFailed, Children
from compat.peers.impairment import Impairment

NAME: Final = "utp-native"
MB: Final = 1_000_000
SEED: Final = 20
LOSSY: Final = Impairment(loss=0.02, delay_us=20_000)
HARSH: Final = Impairment(loss=0.01, delay_us=20_000, jitter_us=5_000, reorder=0.05, reorder_us=6_000, duplicate=0.01)
IDLE_KEEPALIVE: Final = (10, 4, 3)  # TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT: given up after 22 s of silence
BRIEF_KEEPALIVE: Final = (3, 1, 3)
ACKED_SECONDS: Final = 0.5  # until the last ack is in, which node may send later than it speaks: else it is a timeout
IDLE_SECONDS: Final = 60  # two of libutp's keepalives (29 s)
RESETS: Final = ("UTP_ECONNRESET", "ConnectionResetError")
RESET_SECONDS: Final = 20.0  # within which a sender must learn that its peer was started anew
_BRIEF: Final = {"keepalive": BRIEF_KEEPALIVE}
SMALL_BUFFERS: Final = {"receive_buffer_bytes": 32 << 10, "send_buffer_bytes": 32 << 10}


def version() -> str:
    """Sets the peer up. Raises provision.Unavailable."""
    provision.utp_native()
    return provision.UTP_NATIVE_VERSION


def cases(*, quick: bool, size_bytes: int | None) -> list[Case]:
    """In the order they are to be started, the longest first; `size_bytes` replaces the sizes of the transfers."""
    sizes = [size_bytes] if size_bytes else [1 * MB, 10 * MB] if quick else [1 * MB, 10 * MB, 50 * MB]
    found: list[Case] = _both_roles(_idle) + _both_roles(_vanish)
    for size in reversed(sizes):
        for road in [LOSSY] if quick else [LOSSY, HARSH]:
            for kind in ("upload", "download"):
                found += _transfers(kind, size, road)
    for kind in ("half_close", "half_close_reverse"):
        found += _transfers(kind, sizes[0], LOSSY)
    found += _both_roles(_reset_by_us) + _both_roles(_reset_by_a_restarted_peer)
    for size in sizes:
        for kind in ("upload", "download"):
            found += _transfers(kind, size)
    for kind in ("half_close", "half_close_reverse", "echo", "nc_half_close", "nc_half_close_reverse"):
        found += _transfers(kind, sizes[0])
    if not quick:
        found += _transfers("echo", sizes[-1])
        for kind in ("upload_small_buffers", "download_small_buffers"):
            found += _transfers(kind, sizes[len(sizes) // 2])
    return found


def _both_roles(make: Callable[[str], Case]) -> list[Case]:
    return [make(role) for role in ("initiator", "acceptor")]


def _transfers(kind: str, size: int, impairment: Impairment | None = None) -> list[Case]:
    def transfer(role: str) -> Case:
        return Case(
            NAME,
            title(kind.replace("_", "-"), size, impairment),
            role,
            size,
            run=_converse,
            kind=kind,
            impairment=impairment,
            waits=impairment is not None,
            seconds_allowed=60 + (8.0 if impairment else 3.0) * size / MB,
        )

    return _both_roles(transfer)


def _idle(role: str) -> Case:
    name, allowed = f"idle {IDLE_SECONDS} s", IDLE_SECONDS + 30.0
    return Case(NAME, name, role, 64_000, run=_converse, kind="idle", waits=True, seconds_allowed=allowed)


def _vanish(role: str) -> Case:
    name = "peer stopped while idle"
    return Case(NAME, name, role, 64_000, run=_stop, kind="vanish", waits=True, has_control=False)


def _reset_by_us(role: str) -> Case:
    # libutp's interface has no way to reset on purpose.
    return Case(NAME, "reset by us", role, 64_000, run=_abort, kind="abort", seconds_allowed=30, has_control=False)


def _reset_by_a_restarted_peer(role: str) -> Case:
    # The relay is there to swallow ICMP, not to do harm.
    return Case(NAME, "reset by a restarted acceptor", role, 0, run=_restart, kind="endless", impairment=Impairment())


def start_side(
    children: Children,
    case: Case,
    side: str,
    circumstances: Circumstances,
    arguments: list[str],
    settings: dict[str, Any],
) -> Child:
    """Start the acceptor or the initiator: ours when it is the case's role, else libutp's."""
    if side == case.role and not circumstances.control:
        return children.start(f"utpsocket {side}", python_module("stream", *arguments, header_text(settings)))
    command = [
        provision.node(),
        str(REPOSITORY / "compat/peers/utp_native/peer.cjs"),
        *arguments,
        header_text(settings),
    ]
    environment = {"NODE_PATH": str(provision.utp_native())}
    return children.start(f"{NAME} {side}", command, environment=environment)


def _converse(case: Case, circumstances: Circumstances, deadline: float) -> float:
    kind = case.kind.removesuffix("_small_buffers")
    settings: dict[str, Any] = SMALL_BUFFERS if kind != case.kind else {}
    if kind.startswith("nc_"):  # our side is the command of that name
        kind, settings = kind.removeprefix("nc_"), {"nc": True}
    if kind == "idle":
        # Its own sign of life comes after 29 s: were our questions not answered, it would count as dead before.
        settings = {"keepalive": IDLE_KEEPALIVE}
    header = {"case": kind, "bytes": case.bytes, "seed": SEED, "idle_seconds": IDLE_SECONDS}
    with Children() as children:
        acceptor = start_side(children, case, "acceptor", circumstances, ["listen"], settings)
        road = Road(children, case, circumstances, acceptor.expect("port", deadline=deadline), deadline=deadline)
        dial = ["connect", LOOPBACK, str(road.port), header_text(header)]
        initiator = start_side(children, case, "initiator", circumstances, dial, settings)
        reports = _reports(initiator, acceptor, road, deadline)
        for name, report in reports.items():
            if report["error"]:
                raise CaseFailed(f"{name}: {_both(reports)}{road.story()}")
        check_same_bytes(reports)
        if not all(report["eof"] for report in reports.values()):
            raise CaseFailed(f"no clean end: {_both(reports)}")
        least = case.bytes * {"echo": 2, "half_close": 2, "half_close_reverse": 2, "idle": 4}.get(kind, 1)
        moved = sum(report["sent"]["bytes"] for report in reports.values())
        if moved != least:
            raise CaseFailed(f"{moved} bytes moved instead of {least}")
        for child in (initiator, acceptor):
            child.wait(deadline=time.monotonic() + 20)
        return float(reports["initiator"]["seconds"])


def _abort(case: Case, circumstances: Circumstances, deadline: float) -> float:
    """We reset the connection; the peer's error says so."""
    header = {"case": "abort", "bytes": case.bytes, "seed": SEED, "aborter": case.role}
    peers_role = "acceptor" if case.role == "initiator" else "initiator"
    with Children() as children:
        acceptor = start_side(children, case, "acceptor", circumstances, ["listen"], {})
        road = Road(children, case, circumstances, acceptor.expect("port", deadline=deadline), deadline=deadline)
        dial = ["connect", LOOPBACK, str(road.port), header_text(header)]
        initiator = start_side(children, case, "initiator", circumstances, dial, {})
        reports = _reports(initiator, acceptor, road, deadline)
        if reports[case.role]["error"]:
            raise CaseFailed(f"we failed: {_both(reports)}")
        if not str(reports[peers_role]["error"]).startswith(RESETS):
            raise CaseFailed(f"the peer saw {reports[peers_role]['error']!r} instead of a reset{road.story()}")
        return float(reports["initiator"]["seconds"])


def _stop(case: Case, circumstances: Circumstances, deadline: float) -> float:
    """The peer's process is stopped: its port is still there, so no ICMP comes. Keepalive ends the connection."""
    header = header_text({"case": "vanish", "bytes": case.bytes, "seed": SEED})
    with Children() as children:
        sides = {"acceptor": start_side(children, case, "acceptor", circumstances, ["listen"], _BRIEF)}
        port = sides["acceptor"].expect("port", deadline=deadline)
        dial = ["connect", LOOPBACK, str(port), header]
        sides["initiator"] = start_side(children, case, "initiator", circumstances, dial, _BRIEF)
        sides["initiator"].expect("waiting", deadline=deadline)
        time.sleep(ACKED_SECONDS)
        ours = sides.pop(case.role)
        (peer,) = sides.values()
        peer.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        report = ours.expect("report", deadline=deadline)
        peer.kill()
        if os.strerror(errno.ETIMEDOUT) not in str(report["error"]):
            raise CaseFailed(f"we saw {report['error']!r} instead of a peer that does not answer")
        seconds = time.monotonic() - started
        if seconds < BRIEF_KEEPALIVE[0]:
            raise CaseFailed(f"the connection ended after {seconds:.1f} s, before the first question")
        return seconds


def _restart(case: Case, circumstances: Circumstances, deadline: float) -> float:
    """The acceptor is killed and started anew on its port: it knows nothing of the connection and resets it.

    The relay swallows the ICMP errors of the moment in between, so that the reset is what the initiator learns it by.
    """
    header = {"case": "endless", "bytes": 1000 * MB, "seed": SEED}
    with Children() as children:
        first = start_side(children, case, "acceptor", circumstances, ["listen"], {})
        port = first.expect("port", deadline=deadline)
        road = Road(children, case, circumstances, port, deadline=deadline)
        dial = ["connect", LOOPBACK, str(road.port), header_text(header)]
        initiator = start_side(children, case, "initiator", circumstances, dial, {})
        first.expect("event", deadline=deadline)
        first.kill()
        started = time.monotonic()
        second = start_side(children, case, "acceptor", circumstances, ["listen"], {"port": port})
        second.expect("port", deadline=deadline)
        try:
            report = initiator.expect("report", deadline=time.monotonic() + RESET_SECONDS)
        except ChildFailed as error:
            raise CaseFailed(f"{error}{road.story()}") from None
        if not str(report["error"]).startswith(RESETS):
            raise CaseFailed(f"the initiator saw {report['error']!r} instead of a reset{road.story()}")
        return time.monotonic() - started


def _reports(initiator: Child, acceptor: Child, road: Road, deadline: float) -> dict[str, dict[str, Any]]:
    reports = {}
    try:
        reports["initiator"] = initiator.expect("report", deadline=deadline)
        # Both directions have ended for one side: the other hears of it soon, or never.
        reports["acceptor"] = acceptor.expect("report", deadline=min(deadline, time.monotonic() + 40))
    except ChildFailed as error:
        said = f"; initiator: {_brief(reports['initiator'])}" if reports else ""
        raise CaseFailed(f"{error}{said}{road.story()}") from None
    return reports


def check_same_bytes(reports: dict[str, dict[str, Any]]) -> None:
    for sender, receiver in (("initiator", "acceptor"), ("acceptor", "initiator")):
        sent, received = reports[sender]["sent"], reports[receiver]["received"]
        if sent != received:
            raise CaseFailed(f"{sender} sent {sent}, {receiver} received {received}")


def _brief(report: dict[str, Any]) -> str:
    return f"sent {report['sent']['bytes']}, received {report['received']['bytes']}, {report['error'] or 'no error'}"


def _both(reports: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{side} ({_brief(report)})" for side, report in reports.items())
