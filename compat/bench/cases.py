"""What is measured: each case's name, its unit, who takes part, and how one sample of it is taken."""

from __future__ import annotations

import functools
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compat.bench import costs, imports
from compat.bench.busy import BUSY_PER_CPU, as_many_as_usual, busy_processes
from compat.bench.pair import pair
from compat.bench.paused import BULK_CONNECTIONS, paused
from compat.bench.sample import Sample
from compat.bench.stream_side import CALLS
from compat.bench.subjects import EARLIER, IN_A_PROCESS, MODULES, PURE, UTPSOCKET
from compat.peers.bittorrent import Metainfo
from compat.peers.children import Failed
from compat.peers.stream import seeded_blocks

OURS: Final = (UTPSOCKET, "tcp")
BUILDS: Final = (UTPSOCKET, PURE, "tcp")
TREES: Final = (UTPSOCKET, PURE, EARLIER, "tcp")
MB_PER_SECOND: Final = "MB/s"
QUIC_BYTES_PER_SECOND: Final = 8_000_000  # what it is given for each second of a measurement: about what it carries
TORRENT_BYTES_PER_SECOND: Final = 192_000_000
MEMORY_FOLDER: Final = Path("/dev/shm")  # libtorrent's files must not measure a disk
IDLE_CONNECTIONS: Final = 1_000
SETTLE_SECONDS: Final = 0.2  # the kernel frees in the background what the opening left
SPARE_FDS: Final = 100


@dataclass(frozen=True)
class Case:
    """One comparison.

    take        (subject, seconds) -> one sample. Raises compat.peers.children.Failed.
    reference   the row whose median ours is also compared with, beside TCP's: it is measured in the same rounds
    """

    name: str
    unit: str
    about: str
    subjects: tuple[str, ...]
    take: Callable[[str, float], Sample]
    reference: tuple[str, str] | None = None
    most_rounds: int = 1_000
    """for what takes long and hardly varies"""


def transfer(
    subject: str,
    seconds: float,
    *,
    listener: str = "",
    ours_only: dict[str, str] | None = None,
    kind: str = "bulk",
    busy: int = 0,
    **settings: Any,
) -> Sample:
    """Bytes from the dialer to the listener, or both ways; every byte counted where it arrived.

    listener    who receives; the subject itself unless said
    ours_only   environment of both processes, of utpsocket's: for others it means nothing
    busy        so many processes compute beside the two
    """
    if subject == "libtorrent":
        return torrent(seconds)
    settings |= {"kind": kind, "seconds": seconds, "bytes": int(QUIC_BYTES_PER_SECOND * seconds)}
    environment = ours_only if MODULES.get(subject) == "utpsocket" else None
    with pair(listener or subject, subject, settings, environment=environment) as both, busy_processes(busy):
        received, sent = both.measure_until_received() if subject == "aioquic" else both.measure()
    if kind == "both":
        if (received["bytes"], sent["bytes"]) != (sent["sent"], received["sent"]):
            raise Failed(f"not what was sent arrived: {received}, {sent}")
        total_bytes = received["bytes"] + sent["bytes"]
    else:
        total_bytes = received["bytes"]
        if total_bytes != sent.get("bytes", total_bytes):
            raise Failed(f"{sent['bytes']} bytes were sent, {total_bytes} arrived")
    more = {name: received[name] for name in ("jain",) if name in received and settings.get("parallel", 1) > 1}
    if subject in (UTPSOCKET, PURE) and "timeouts" in sent:
        more["timeouts"] = sent["timeouts"]
    # The busy thread's own CPU time is nobody's cost of a transfer, and an engine's process reports none of its own.
    is_unknown = settings.get("hog") or subject == IN_A_PROCESS
    cpu_seconds = None if is_unknown else (received["cpu_seconds"] + sent["cpu_seconds"]) * 1e9 / total_bytes
    return Sample(total_bytes / elapsed(received, sent) / 1e6, cpu_seconds, more)


def long_transfer(subject: str, seconds: float, *, parallel: int) -> Sample:
    """Three times as long: in the first second a thousand streams are hardly filled once by their one thread, and who
    has what is its order then.
    """
    return transfer(subject, 3 * seconds, parallel=parallel)


def busy_transfer(subject: str, seconds: float) -> Sample:
    """Long enough for each of so many processes to have had its turn a few dozen times."""
    return transfer(subject, 3 * seconds, busy=as_many_as_usual())


def elapsed(*reports: dict[str, Any]) -> float:
    """From the first start to the last end: both processes read the same clock."""
    return float(max(report["ended"] for report in reports) - min(report["started"] for report in reports))


def torrent(seconds: float) -> Sample:
    """A file from a seed to a leech."""
    size_bytes = int(TORRENT_BYTES_PER_SECOND * seconds)
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None) as name:
        folder = Path(name)
        seeded = folder / "seed" / "file.bin"
        seeded.parent.mkdir()
        with seeded.open("wb") as file:
            file.writelines(seeded_blocks(size_bytes, seed=1))
        metainfo = folder / "file.torrent"
        metainfo.write_bytes(Metainfo.of_file(seeded).torrent())
        settings = {"torrent": str(metainfo), "folder": str(folder / "leech"), "seconds": seconds}
        seed = {"folder": str(seeded.parent)}
        with pair("libtorrent", "libtorrent", settings, listener_settings=seed) as both:
            served, fetched = both.measure_until_dialed()
    if fetched["bytes"] != size_bytes:
        raise Failed(f"{fetched['bytes']} of {size_bytes} bytes arrived")
    cpu_seconds = (served["cpu_seconds"] + fetched["cpu_seconds"]) * 1e9 / size_bytes
    return Sample((size_bytes - fetched["earlier_bytes"]) / elapsed(fetched) / 1e6, cpu_seconds)


def pingpong(subject: str, seconds: float, *, size: int) -> Sample:
    """A message there and back, one at a time."""
    with pair(subject, subject, {"kind": "pingpong", "seconds": seconds, "size": size}) as both:
        _, dialed = both.measure()
    return Sample(dialed["count"] / elapsed(dialed), None, {name: dialed[name] for name in ("p50_us", "p99_us")})


def keepalive(subject: str, seconds: float, *, parallel: int, answer: int) -> Sample:
    """Requests and answers over so many connections, one at a time on each."""
    settings = {
        "side": "keepalive_side",
        "kind": "keepalive",
        "seconds": seconds,
        "parallel": parallel,
        "answer": answer,
    }
    with pair(subject, subject, settings) as both:
        accepted, dialed = both.measure()
    more = {name: dialed[name] for name in ("p50_us", "p99_us")}
    more["cpu_us"] = (accepted["cpu_seconds"] + dialed["cpu_seconds"]) * 1e6 / dialed["count"]
    return Sample(dialed["count"] / elapsed(dialed), None, more)


def setup(subject: str, seconds: float) -> Sample:
    """Connect, one byte there and back, close; one after another."""
    with pair(subject, subject, {"kind": "setup", "seconds": seconds}) as both:
        _, dialed = both.measure_until_dialed()
    return Sample(dialed["count"] / elapsed(dialed))


def calls(subject: str, seconds: float, *, parallel: int) -> Sample:
    """The slowest of the medians of bind, listen, connect, getpeername and accept, none of which may wait."""
    with pair(subject, subject, {"kind": "calls", "seconds": seconds, "parallel": parallel}) as both:
        _, dialed = both.measure()
    return Sample(
        max(dialed[f"{name}_us"] for name in CALLS),
        None,
        {name: value for name, value in dialed.items() if name.endswith("_us")},
    )


def idle(subject: str, seconds: float, *, connections: int) -> Sample:
    """What a connection costs that does nothing: per end, resident memory of both processes and slab of the kernel."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    room = 1 << 30 if limit == resource.RLIM_INFINITY else limit - SPARE_FDS
    connections = min(connections, room // 2)
    dialers = -(-connections * 3 // room)  # a dialer's end may have a UDP port of its own
    settings = {"kind": "idle", "seconds": 6.0, "parallel": connections // dialers}
    listener_settings = {"parallel": connections // dialers * dialers}
    with pair(subject, subject, settings, listener_settings=listener_settings, dialers=dialers) as all_of_them:
        before = kernel_slab_bytes()
        all_of_them.tell("go")
        for child in (all_of_them.listener, *all_of_them.dialers):
            all_of_them.expect(child, "opened")
        time.sleep(SETTLE_SECONDS)
        slab_bytes = kernel_slab_bytes() - before
        all_of_them.tell("stop")
        accepted = all_of_them.expect(all_of_them.listener, "report")
        dialed = [all_of_them.expect(child, "report") for child in all_of_them.dialers]
    count = listener_settings["parallel"]
    resident_bytes = accepted["rss"] + sum(report["rss"] for report in dialed)
    return Sample(
        (resident_bytes + slab_bytes) / (2 * count),
        None,
        {
            "connections": count,
            "resident_bytes_listener": accepted["rss"] / count,
            "resident_bytes_dialer": sum(report["rss"] for report in dialed) / count,
            "slab_bytes": slab_bytes / (2 * count),
            "fds_listener": accepted["fds"] / count,
            "fds_dialer": sum(report["fds"] for report in dialed) / count,
            "opened_per_second": count / elapsed(accepted, *dialed),
        },
    )


def kernel_slab_bytes() -> int:
    """What the kernel's own objects take, on the whole machine."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    return 0


def _parallel(count: int) -> Case:
    return Case(
        f"parallel_{count}",
        MB_PER_SECOND,
        f"bulk on {count:,} connections at once, all together" if count > 1 else "bulk on one, to compare with many",
        TREES if count in (1, 1_000) else OURS,
        functools.partial(long_transfer if count >= 1_000 else transfer, parallel=count),
        reference=None if count == 1 else ("parallel_1", "utpsocket"),
    )


def _keepalive(connections: int, answer: int = 100) -> Case:
    return Case(
        f"keepalive_{connections}" + ("" if answer == 100 else f"_{answer // 1000}k"),
        "requests/s",
        f"requests of 100 bytes over {connections:,} open connections, answers of {answer:,}; asyncio streams",
        TREES if (connections, answer) == (20, 100) else BUILDS,
        functools.partial(keepalive, parallel=connections, answer=answer),
    )


ALL: Final = (
    Case(
        "bulk",
        MB_PER_SECOND,
        "one connection, one way, 256 KiB at a time",
        (UTPSOCKET, IN_A_PROCESS, PURE, EARLIER, "tcp", "utp-native", "libtorrent", "aioquic"),
        transfer,
    ),
    Case(
        "bulk_both", MB_PER_SECOND, "one connection, both ways at once", OURS, functools.partial(transfer, kind="both")
    ),
    Case(
        "pingpong_1",
        "round trips/s",
        "1 byte there and back",
        (UTPSOCKET, IN_A_PROCESS, PURE, EARLIER, "tcp", "utp-native", "aioquic"),
        functools.partial(pingpong, size=1),
    ),
    Case(
        "pingpong_1k",
        "round trips/s",
        "1,024 bytes there and back",
        ("utpsocket", "tcp", "utp-native", "aioquic"),
        functools.partial(pingpong, size=1024),
    ),
    Case(
        "paused_alone",
        "ms",
        "1 byte there and back, one every 2 ms: the median",
        (UTPSOCKET, IN_A_PROCESS, PURE, "tcp"),
        functools.partial(paused, parallel=0),
    ),
    Case(
        "paused_beside_bulk",
        "ms",
        "the same, and four connections of the two processes send bulk",
        (UTPSOCKET, IN_A_PROCESS, PURE, "tcp"),
        functools.partial(paused, parallel=BULK_CONNECTIONS),
    ),
    Case(
        "paused_against_bulk",
        "ms",
        "the same, and the bulk comes from the process that answers",
        ("utpsocket", IN_A_PROCESS, "tcp"),
        functools.partial(paused, parallel=BULK_CONNECTIONS, kind="received"),
    ),
    Case("setup", "connections/s", "connect, 1 byte there and back, close", TREES, setup),
    *(_keepalive(connections) for connections in (1, 20, 200, 1000)),
    *(_keepalive(connections, 20_000) for connections in (20, 200)),
    Case(
        "nonblocking_calls",
        "µs",
        "bind, listen, connect, getpeername, accept: the slowest median",
        ("utpsocket", IN_A_PROCESS, "tcp"),
        functools.partial(calls, parallel=0),
    ),
    Case(
        "nonblocking_calls_bulk",
        "µs",
        "the same in a process that sends on four connections",
        ("utpsocket", IN_A_PROCESS, "tcp"),
        functools.partial(calls, parallel=4),
    ),
    *(_parallel(count) for count in (1, 10, 100, 1000)),
    Case(
        "idle",
        "B",
        "memory of an idle connection's end, Python's and the kernel's",
        TREES,
        functools.partial(idle, connections=IDLE_CONNECTIONS),
    ),
    Case(
        "idle_10000",
        "B",
        "the same with 10,000 connections in the listener's process",
        OURS,
        functools.partial(idle, connections=10_000),
        most_rounds=2,
    ),
    Case(
        "no_offload",
        MB_PER_SECOND,
        "bulk without GSO and GRO",
        TREES,
        functools.partial(transfer, ours_only={"UTPSOCKET_OFFLOAD": "0"}),
    ),
    Case(
        "stock_buffer",
        MB_PER_SECOND,
        "bulk with the UDP buffer that the system gives unasked",
        ("utpsocket",),
        functools.partial(transfer, ours_only={"UTPSOCKET_UDP_BUFFER": "0"}),
        reference=("bulk", "utpsocket"),
    ),
    Case(
        "hog",
        MB_PER_SECOND,
        "bulk with a busy Python thread in the sender's process",
        ("utpsocket", IN_A_PROCESS, "tcp"),
        functools.partial(transfer, hog=True),
    ),
    Case(
        "bulk_busy",
        MB_PER_SECOND,
        f"bulk beside {BUSY_PER_CPU} busy processes for each CPU",
        BUILDS,
        busy_transfer,
        reference=("bulk", "utpsocket"),
    ),
    Case(
        "message_cost",
        "µs",
        "CPU of the costlier engine for 1 byte there and back (tcp: of the caller)",
        BUILDS,
        costs.message_cost,
    ),
    Case(
        "run_cost",
        "µs",
        "CPU of both engines for a run of 41 packets, 59.5 KB (tcp: of both callers)",
        BUILDS,
        costs.run_cost,
    ),
    Case("import", "ms", "CPU of `import utpsocket` (tcp: of `import asyncio`)", TREES, imports.import_cost),
    Case(
        "patched_child",
        "ms",
        "CPU that a child of a patched program pays for the patch (tcp: `import asyncio`)",
        BUILDS,
        imports.patched_child,
    ),
    Case(
        "to_libutp",
        MB_PER_SECOND,
        "bulk to a libutp receiver",
        ("utpsocket", "utp-native"),
        functools.partial(transfer, listener="utp-native"),
        reference=("to_libutp", "utp-native"),
    ),
)
BY_NAME: Final = {case.name: case for case in ALL}
QUICK: Final = ("bulk", "pingpong_1", "setup")
