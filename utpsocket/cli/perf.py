"""`perf`: how fast bytes go from one process to another over uTP, and the CPU time that it takes; like iperf.

    perf loopback            a server in a child process, measured from this one
    perf server              on one machine, until Ctrl-C
    perf client HOST PORT    on the other

The client sends, or receives with --reverse, until --bytes or --seconds are over, in CALL_BYTES at a time. The
receiver compares every byte with what it must be. With `--transport tcp` the same code runs over the stdlib's sockets,
to compare with. The exit status is 0 only if all that was sent arrived unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from utpsocket.cli.child import Interrupts, ServerFailed, server_process, terminate_at_eof
from utpsocket.cli.demo import LOOPBACK, transport_named
from utpsocket.cli.messages import complain, note
from utpsocket.cli.perf_plot import SAMPLE_SECONDS, Samples
from utpsocket.cli.perf_server import (
    LONG_LINE_BYTES,
    OPEN_SECONDS,
    VERSION,
    Json,
    Lines,
    PerfError,
    Plan,
    Server,
    allow_fds,
    figures_of,
    read_line,
    write_line,
)
from utpsocket.cli.perf_streams import DataMismatch, Limit, Update, receive_all, send_all
from utpsocket.cli.progress import Progress
from utpsocket.cli.quantities import printable, read_size, show_rate, show_time

EXAMPLES: Final = ("perf loopback --seconds 5", "perf client 192.0.2.7 5201 --reverse --plot perf.svg")
DEFAULT_BYTES: Final = 1_000_000_000
DEFAULT_PORT: Final = 5_201  # iperf3's


def configure(parser: argparse.ArgumentParser) -> None:
    """Add perf's arguments to `parser`."""
    roles = parser.add_subparsers(title="roles", metavar="{loopback,server,client}", required=True)

    loopback = roles.add_parser("loopback", help="both in two processes of this machine")
    loopback.set_defaults(role=run_loopback)
    add_plan(loopback)

    server = roles.add_parser("server", help="serve clients until Ctrl-C")
    server.set_defaults(role=run_server)
    server.add_argument(
        "address",
        metavar="[HOST:]PORT",
        nargs="?",
        type=read_address,
        default=("", DEFAULT_PORT),
        help=f"where to listen, port 0 for any (default: every IPv4 address, port {DEFAULT_PORT})",
    )
    # For the parent of a child process: however the parent ends, the kernel closes its end of the pipe.
    server.add_argument("--until-eof", action="store_true", help="also stop when stdin ends")
    add_common(server)

    client = roles.add_parser("client", help="measure against a server")
    client.set_defaults(role=run_client)
    client.add_argument("host", metavar="HOST")
    client.add_argument("port", metavar="PORT", type=int)
    add_plan(client)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every role shares."""
    parser.add_argument(
        "--transport", choices=("utp", "tcp"), default="utp", help="what carries the bytes (default: utp)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """What is to be measured."""
    add_common(parser)
    end = parser.add_mutually_exclusive_group()
    end.add_argument(
        "--bytes",
        type=read_size,
        metavar="SIZE",
        help="to send in all, K/M/G for powers of 1,000 and Ki/Mi/Gi for powers of 1,024 (default: 1G)",
    )
    end.add_argument("--seconds", type=read_seconds, metavar="S", help="to send for, instead of a number of bytes")
    parser.add_argument("--parallel", type=read_count, metavar="N", default=1, help="connections at once (default: 1)")
    parser.add_argument("--reverse", action="store_true", help="the server sends")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw rate, congestion window, queueing delay and losses over time (SVG)"
    )


def read_address(text: str) -> tuple[str, int]:
    """HOST:PORT, [HOST]:PORT or PORT."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, nor HOST:PORT")
    return host.strip("[]"), int(port)


def read_seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def read_count(text: str) -> int:
    """One or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of connections")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Play the role that was asked for; the exit status."""
    role: Callable[[argparse.Namespace], int] = arguments.role
    return role(arguments)


def run_loopback(arguments: argparse.Namespace) -> int:
    """Serve in a child process and measure from this one."""
    options = ["--until-eof", "--json", "--transport", arguments.transport]
    try:
        with server_process("perf", "server", f"{LOOPBACK}:0", *options) as port:
            status = measure_and_show(LOOPBACK, port, arguments)
    except ServerFailed as failure:
        complain(f"{failure}")
        return 1
    return status


def run_client(arguments: argparse.Namespace) -> int:
    """Measure against a `perf server` somewhere."""
    return measure_and_show(arguments.host, arguments.port, arguments)


def run_server(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C, SIGTERM, or, with --until-eof, the end of stdin."""
    interrupts = Interrupts()
    if arguments.until_eof:
        threading.Thread(target=terminate_at_eof, daemon=True).start()
    host, port = arguments.address
    with contextlib.suppress(KeyboardInterrupt), interrupts.allowed():
        try:
            server = Server((host, port), transport_named(arguments.transport))
        except OSError as error:
            complain(f"cannot listen on {host or 'any address'} port {port}: {error}")
            return 1
        with contextlib.closing(server):
            if arguments.json:
                print(json.dumps({"port": server.port}), flush=True)
            else:
                print(
                    f"serving over {arguments.transport} on port {server.port}; "
                    f"on the other machine: python3 -m utpsocket perf client HOST {server.port}",
                    flush=True,
                )
            server.serve_forever()
    return 0


@dataclass(frozen=True)
class Measurement:
    """What one client saw. The seconds are the client's, from "go" until all has arrived and both know it."""

    transport: str
    total_bytes: int
    seconds: float
    sender_cpu_seconds: float
    receiver_cpu_seconds: float
    connections: list[Json]

    @property
    def goodput_bytes_per_second(self) -> float:
        """Of all connections together."""
        return self.total_bytes / self.seconds if self.seconds else 0.0


def measure_and_show(host: str, port: int, arguments: argparse.Namespace) -> int:
    """Measure, print what it cost, and return the exit status."""
    total_bytes = arguments.bytes
    if total_bytes is None and arguments.seconds is None:
        total_bytes = DEFAULT_BYTES
    plan = Plan(uuid.uuid4().hex, arguments.parallel, arguments.reverse, Limit(total_bytes, arguments.seconds))
    samples = Samples(is_receiving=arguments.reverse) if arguments.plot else None
    try:
        with contextlib.ExitStack() as stack:

            def begin() -> Update:
                if total_bytes is None:
                    note(f"sending for {arguments.seconds:g} s ...")
                    return lambda counts: None
                progress = stack.enter_context(Progress(total_bytes))
                return lambda counts: progress.update(sum(counts))

            result = measure(host, port, plan, arguments.transport, begin, samples)
    except (OSError, PerfError, DataMismatch) as error:
        complain(f"{host} port {port} over {arguments.transport}: {error or type(error).__name__}")
        return 1
    shown = json.dumps(as_json(result)) if arguments.json else as_table(result)
    print(printable(shown, sys.stdout.encoding), flush=True)
    return 0 if samples is None else write_plot(arguments.plot, samples, result)


def write_plot(path: str, samples: Samples, result: Measurement) -> int:
    """Write what was seen as an SVG; the exit status."""
    count = len(result.connections)
    title = f"{'uTP' if result.transport == 'utp' else 'TCP'}, {show_rate(result.goodput_bytes_per_second)}"
    note_text = f"{count:,} connection{'s' * (count > 1)}, {result.total_bytes:,} bytes in {result.seconds:.1f} s"
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(samples.draw(title=title, note=note_text))
    except ValueError:
        complain(f"no plot: the measurement took less than {2 * SAMPLE_SECONDS:g} s")
        return 1
    except OSError as error:
        complain(f"no plot: {error}")
        return 1
    return 0


def measure(
    host: str,
    port: int,
    plan: Plan,
    transport_name: str,
    begin: Callable[[], Update],
    samples: Samples | None = None,
) -> Measurement:
    """Carry out `plan` against the server at this address.

    begin   is called when the transfer is about to begin; what it returns is called with the bytes on each stream so
            far
    samples looks at the streams meanwhile
    Raises OSError, PerfError, DataMismatch.
    """
    transport = transport_named(transport_name)
    allow_fds(plan.parallel)
    with contextlib.ExitStack() as stack:
        control: socket.socket = stack.enter_context(transport.create_connection((host, port), OPEN_SECONDS))
        answers = stack.enter_context(control.makefile("rb"))
        write_line(control, plan.line())
        read_line(answers)
        streams: list[socket.socket] = []
        for number in range(plan.parallel):
            stream = stack.enter_context(transport.create_connection((host, port), OPEN_SECONDS))
            write_line(stream, {"perf": VERSION, "stream": plan.name, "number": number})
            stream.settimeout(None)
            streams.append(stream)
        answer = read_line(answers)
        if "open" not in answer:
            raise PerfError(f"the server says: {answer.get('error', answer)}")
        control.settimeout(None)
        update = begin()
        if samples is not None:
            stack.enter_context(samples.of(streams))
        return _transfer(control, answers, streams, plan, transport, update)


def _transfer(
    control: socket.socket,
    answers: Lines,
    streams: list[socket.socket],
    plan: Plan,
    transport: ModuleType,
    update: Update,
) -> Measurement:
    started_cpu, started = time.process_time(), time.monotonic()
    write_line(control, {"go": True})
    try:
        if plan.reverse:
            counts = receive_all(streams, update)
            seconds, cpu_seconds = time.monotonic() - started, time.process_time() - started_cpu
            for stream in streams:
                stream.close()
            report = read_line(answers, LONG_LINE_BYTES)
        else:
            counts = send_all(streams, plan.limit, update)
            report = read_line(answers, LONG_LINE_BYTES)
            seconds, cpu_seconds = time.monotonic() - started, time.process_time() - started_cpu
    except OSError:
        # The reset shows only that the receiver has stopped; its report says why.
        final_report = _final_report(control, answers)
        if final_report is None:
            raise
        report = final_report
    if "error" in report:
        raise PerfError(f"the server says: {report['error']}")
    if report["bytes"] != counts:
        raise DataMismatch(f"{sum(counts):,} bytes here, {sum(report['bytes']):,} there")
    return Measurement(
        transport="utp" if hasattr(transport, "UTP_INFO") else "tcp",
        total_bytes=sum(counts),
        seconds=seconds,
        sender_cpu_seconds=report["cpu_seconds"] if plan.reverse else cpu_seconds,
        receiver_cpu_seconds=cpu_seconds if plan.reverse else report["cpu_seconds"],
        connections=report["connections"] if plan.reverse else figures_of(streams, counts, transport),
    )


def _final_report(control: socket.socket, answers: Lines) -> Json | None:
    try:
        control.settimeout(OPEN_SECONDS)
        return read_line(answers, LONG_LINE_BYTES)
    except (OSError, PerfError):
        return None


def as_json(result: Measurement) -> dict[str, object]:
    """The object that --json prints. Its keys are stable."""
    return {
        "transport": result.transport,
        "bytes": result.total_bytes,
        "seconds": round(result.seconds, 6),
        "goodput_bytes_per_second": round(result.goodput_bytes_per_second),
        "cpu_seconds": {
            "sender": round(result.sender_cpu_seconds, 6),
            "receiver": round(result.receiver_cpu_seconds, 6),
        },
        "connections": result.connections,
    }


def as_table(result: Measurement) -> str:
    """The same for people."""
    connections = result.connections
    rtts = [figures["rtt_us"] for figures in connections if figures.get("rtt_us") is not None]
    packets = {figures.get("packet_bytes") for figures in connections}
    resent = [figures.get("retransmitted_packets") for figures in connections]
    cpu_seconds = result.sender_cpu_seconds + result.receiver_cpu_seconds
    per_gb = f", {cpu_seconds * 1e9 / result.total_bytes:.2f} per GB" if result.total_bytes else ""
    rows = {
        "transport": result.transport,
        "connections": f"{len(connections):,}",
        "bytes": f"{result.total_bytes:,}, compared one by one",
        "seconds": f"{result.seconds:.3f}",
        "goodput": show_rate(result.goodput_bytes_per_second),
        "CPU seconds": f"{result.sender_cpu_seconds:.2f} sender, {result.receiver_cpu_seconds:.2f} receiver{per_gb}",
        "round-trip time": show_time(sum(rtts) / len(rtts)) if rtts else "unknown",
        "packet size": ", ".join(f"{size:,} bytes" if size else "unknown" for size in sorted(packets, key=_order)),
        "retransmissions": "unknown" if None in resent else f"{sum(filter(None, resent)):,}",
    }
    return "\n".join(f"{name:<17}{value}" for name, value in rows.items())


def _order(size: int | None) -> int:
    return size or 0
