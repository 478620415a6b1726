"""A libtorrent session that speaks uTP and nothing else; runs in the virtual environment that has libtorrent.

    PYTHON libtorrent_session.py seed|leech TORRENT FOLDER HOST [PORT]

It listens, prints `{"port": …}`, and dials the one peer it is told of, if any. It prints a `{"peer": …}` for each
peer after its handshake, `{"gone": address}` for each that is there no more, and at last `{"report": {finished,
downloaded, uploaded, peers: [{address, client, utp}], seconds, error}}`: a leech when it has all pieces, either when
standard input ends. A line of JSON there says what is to be done before: `{"connect": [HOST, PORT]}`, or
`{"pause": true}`, upon which it closes its connections. Nothing of this project is imported: it is the other side.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Any

import libtorrent as lt

UTP_SOCKET = 1 << 17  # peer_info::utp_socket; the Python binding has no name for it
LOOK_SECONDS = 0.05
LEAVE_SECONDS = 5.0


def emit(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def session(host: str, *, tcp: bool) -> Any:
    """At a loopback address. `tcp` turns the transports round, to see that the uTP flag means something."""
    return lt.session(
        {
            "listen_interfaces": f"[{host}]:0" if ":" in host else f"{host}:0",
            "enable_outgoing_tcp": tcp,
            "enable_incoming_tcp": tcp,
            "enable_outgoing_utp": not tcp,
            "enable_incoming_utp": not tcp,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "out_enc_policy": 2,
            "in_enc_policy": 2,
            "allow_multiple_connections_per_ip": True,
            # By default a connection is given up, without a word, when one packet was sent 3 times in vain: at 2 % loss
            # that is every third download of 50 MB.
            "utp_num_resends": 20,
            "mixed_mode_algorithm": 0,
            # Seeds leave each other: a leech that had everything at once was then gone before anybody looked.
            "close_redundant_connections": False,
            # Told to dial again, it does so at once.
            "min_reconnect_time": 1,
            "alert_mask": lt.alert.category_t.status_notification
            | lt.alert.category_t.error_notification
            | lt.alert.category_t.connect_notification,
        }
    )


def listening_port(running: Any, wanted: str) -> int:
    """The port of the wanted kind of socket, from the alert that announces it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        running.wait_for_alert(100)
        for alert in running.pop_alerts():
            if isinstance(alert, lt.listen_succeeded_alert) and wanted in str(alert.socket_type).lower():
                return int(alert.port)
    raise SystemExit(f"libtorrent does not listen on {wanted}")


def obey(torrent: Any, line: bytes) -> None:
    order = json.loads(line)
    if "connect" in order:
        torrent.connect_peer(tuple(order["connect"]))
    if order.get("pause"):
        torrent.pause()


def client_name(client: bytes | str) -> str:
    return client.decode(errors="replace") if isinstance(client, bytes) else client


def came_and_went(running: Any) -> list[dict[str, Any]]:
    """Peers that closed after their handshake, by the alerts: one that took all it wanted between two looks too."""
    left = []
    for alert in running.pop_alerts():
        if isinstance(alert, lt.peer_disconnected_alert) and any(alert.pid.to_bytes()):
            is_utp = alert.socket_type == lt.socket_type_t.utp
            address = f"{alert.endpoint[0]}:{alert.endpoint[1]}"
            left.append({"address": address, "client": client_name(alert.pid.to_bytes()[:8]), "utp": is_utp})
    return left


def watch(running: Any, torrent: Any, *, until_finished: bool) -> dict[str, Any]:
    """Look at the peers until the end; the report on all that were seen."""
    started = time.monotonic()
    peers: dict[str, dict[str, Any]] = {}
    present: set[str] = set()
    orders = b""
    while True:
        absent, present = present, set()
        for peer in torrent.get_peer_info():
            if peer.flags & (peer.connecting | peer.handshake):
                continue
            address = f"{peer.ip[0]}:{peer.ip[1]}"
            present.add(address)
            if address not in peers:
                is_utp = bool(peer.flags & UTP_SOCKET)
                peers[address] = {"address": address, "client": client_name(peer.client), "utp": is_utp}
                emit({"peer": peers[address]})
        for seen in came_and_went(running):
            if seen["address"] not in peers:
                peers[seen["address"]] = seen
                emit({"peer": seen})
                absent.add(seen["address"])
        for address in absent - present:
            emit({"gone": address})
        status = torrent.status()
        if until_finished and status.is_seeding and peers:
            break
        if status.errc.value():
            break
        if select.select([0], [], [], LOOK_SECONDS)[0]:
            data = os.read(0, 4096)
            if not data:
                break
            *lines, orders = (orders + data).split(b"\n")
            for line in lines:
                obey(torrent, line)
    return {
        "finished": bool(status.is_seeding),
        "downloaded": status.total_payload_download,
        "uploaded": status.total_payload_upload,
        "peers": list(peers.values()),
        "seconds": time.monotonic() - started,
        "error": status.errc.message() if status.errc.value() else None,
    }


def main(arguments: list[str]) -> int:
    tcp = "--tcp" in arguments
    role, torrent_file, folder, host, *port = [argument for argument in arguments if argument != "--tcp"]
    running = session(host, tcp=tcp)
    our_port = listening_port(running, "tcp" if tcp else "udp")
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(torrent_file)
    parameters.save_path = folder
    # Neither queued nor announced: it runs at once, and only with whom it is told.
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused | lt.torrent_flags.duplicate_is_error)
    torrent = running.add_torrent(parameters)
    while role == "seed" and not torrent.status().is_seeding:
        time.sleep(0.02)
    emit({"port": our_port})
    if port:
        torrent.connect_peer((host, int(port[0])))
    emit({"report": watch(running, torrent, until_finished=role == "leech")})
    leave(torrent)
    return 0


def leave(torrent: Any) -> None:
    """Close the peers' connections: a session that merely ends may not tell them."""
    torrent.pause()
    deadline = time.monotonic() + LEAVE_SECONDS
    while torrent.get_peer_info() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
