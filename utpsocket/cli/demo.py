"""`demo`: the stdlib's web server and client, in two processes, over uTP, and what it cost.

    demo                     a server in a child process, a download in this one
    demo serve               on one machine, until Ctrl-C
    demo fetch HOST PORT     on the other

With `--transport tcp` the same code runs over the stdlib's sockets, to compare with. The exit status is 0 only if the
SHA-256 of what arrived is that of what was served.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from utpsocket.cli.child import Interrupts, ServerFailed, server_process, terminate_at_eof
from utpsocket.cli.demo_download import Download, DownloadError, download
from utpsocket.cli.demo_server import Server, make_file
from utpsocket.cli.messages import complain, note
from utpsocket.cli.progress import Progress
from utpsocket.cli.quantities import printable, read_size, show_rate, show_size, show_time
from utpsocket.protocol.build import BUILD

EXAMPLES: Final = ("demo", "demo --size 1G --transport tcp --json")
LOOPBACK: Final = "127.0.0.1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add demo's arguments to `parser`."""
    parser.set_defaults(role=run_both)
    add_options(parser, size=True)
    roles = parser.add_subparsers(title="on two machines", metavar="{serve,fetch}")

    # An option may stand before or after the role: SUPPRESS keeps the second parser from resetting what the first read.
    serve = roles.add_parser("serve", help="only serve the file", argument_default=argparse.SUPPRESS)
    serve.set_defaults(role=run_serve)
    serve.add_argument("--host", default="", help="address to listen on (default: every IPv4 address)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any (default: 8000)")
    # For the parent of a child process: however the parent ends, the kernel closes its end of the pipe.
    serve.add_argument("--until-eof", action="store_true", default=False, help="also stop when stdin ends")
    add_options(serve, size=True)

    fetch = roles.add_parser("fetch", help="only download it", argument_default=argparse.SUPPRESS)
    fetch.set_defaults(role=run_fetch)
    fetch.add_argument("host", metavar="HOST")
    fetch.add_argument("port", metavar="PORT", type=int)
    add_options(fetch, size=False)


def add_options(parser: argparse.ArgumentParser, *, size: bool) -> None:
    """The options that every role shares."""

    def default(value: object) -> object:
        return value if parser.argument_default is None else parser.argument_default

    if size:
        parser.add_argument(
            "--size",
            type=read_size,
            default=default("256M"),
            help="of the file, K/M/G for powers of 1,000 and Ki/Mi/Gi for powers of 1,024 (default: 256M)",
        )
    parser.add_argument(
        "--transport",
        choices=("utp", "tcp"),
        default=default("utp"),
        help="what carries the bytes (default: utp)",
    )
    parser.add_argument("--json", action="store_true", default=default(False), help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Play the role that was asked for; the exit status."""
    role: Callable[[argparse.Namespace], int] = arguments.role
    return role(arguments)


def run_both(arguments: argparse.Namespace) -> int:
    """Serve in a child process and download in this one."""
    note(f"serving {show_size(arguments.size)} over {arguments.transport} from a child process ...")
    try:
        with server_process(*serve_command(arguments)) as port:
            status = fetch_and_show(LOOPBACK, port, arguments)
    except ServerFailed as failure:
        complain(f"{failure}")
        return 1
    return status


def serve_command(arguments: argparse.Namespace) -> list[str]:
    """The child's command line."""
    options = ["--host", LOOPBACK, "--port", "0", "--size", str(arguments.size), "--transport", arguments.transport]
    return ["demo", "serve", "--until-eof", "--json", *options]


def run_fetch(arguments: argparse.Namespace) -> int:
    """Download from a `demo serve` somewhere."""
    return fetch_and_show(arguments.host, arguments.port, arguments)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C, SIGTERM, or, with --until-eof, the end of stdin."""
    interrupts = Interrupts()
    if arguments.until_eof:
        threading.Thread(target=terminate_at_eof, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="utpsocket-demo-")))
        stack.enter_context(interrupts.allowed())
        served = make_file(directory, arguments.size)
        try:
            server = Server((arguments.host, arguments.port), transport_named(arguments.transport), served)
        except OSError as error:
            complain(f"cannot listen on {arguments.host or 'any address'} port {arguments.port}: {error}")
            return 1
        stack.enter_context(server)
        ready = {"port": server.server_port, "bytes": served.size_bytes, "sha256": served.sha256.hex()}
        if arguments.json:
            print(json.dumps(ready), flush=True)
        else:
            print(
                f"serving {served.size_bytes:,} bytes over {arguments.transport} on port {server.server_port}; "
                f"on the other machine: python3 -m utpsocket demo fetch HOST {server.server_port}",
                flush=True,
            )
        server.serve_forever()
    return 0


def fetch_and_show(host: str, port: int, arguments: argparse.Namespace) -> int:
    """Download, print what it cost, and return the exit status."""
    try:
        # The progress line begins when the size is known, and ends before anything else is printed.
        with contextlib.ExitStack() as stack:
            result = download(
                host,
                port,
                transport_named(arguments.transport),
                lambda size_bytes: stack.enter_context(Progress(size_bytes)).update,
            )
    except (OSError, http.client.HTTPException, DownloadError) as error:
        complain(f"{host} port {port} over {arguments.transport}: {error or type(error).__name__}")
        return 1
    shown = json.dumps(as_json(result)) if arguments.json else as_table(result, arguments.transport)
    print(printable(shown, sys.stdout.encoding), flush=True)
    if not result.sha256_ok:
        complain("what arrived is not what was sent")
    return 0 if result.sha256_ok else 1


def transport_named(name: str) -> ModuleType:
    """The module that stands for `socket`."""
    if name == "tcp":
        import socket

        return socket
    import utpsocket

    return utpsocket


def as_json(result: Download) -> dict[str, object]:
    """The object that --json prints. Its keys are stable."""
    return {
        "bytes": result.size_bytes,
        "seconds": round(result.seconds, 6),
        "goodput_bytes_per_second": round(result.goodput_bytes_per_second),
        "sha256_ok": result.sha256_ok,
        "retransmitted_packets": result.retransmitted_packets,
        "packet_bytes": result.packet_bytes,
        "rtt_us": result.rtt_us,
        "build": BUILD,
        "cpu_seconds": {
            "server": round(result.server_cpu_seconds, 3),
            "client": round(result.client_cpu_seconds, 3),
        },
    }


def as_table(result: Download, transport: str) -> str:
    """The same for people."""
    unknown = "unknown"
    rows = {
        "transport": transport,
        "build": BUILD,
        "bytes": f"{result.size_bytes:,}",
        "seconds": f"{result.seconds:.3f}",
        "goodput": show_rate(result.goodput_bytes_per_second),
        "round-trip time": unknown if result.rtt_us is None else show_time(result.rtt_us),
        "packet size": unknown if result.packet_bytes is None else f"{result.packet_bytes:,} bytes",
        "retransmissions": unknown if result.retransmitted_packets is None else f"{result.retransmitted_packets:,}",
        "CPU seconds": f"{result.server_cpu_seconds:.2f} server, {result.client_cpu_seconds:.2f} client",
        "sha256": "the same on both sides" if result.sha256_ok else "DIFFERS",
    }
    return "\n".join(f"{name:<17}{value}" for name, value in rows.items())
