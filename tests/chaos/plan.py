"""What happens in a run, drawn from its seed: who connects how, what each side writes, reads and waits for, how it
ends, and what the path does to it.

No plan may block for ever over TCP: a side that waits for the other's end of file before it writes, or before it says
its own, faces one that does not. Times s unless the name says otherwise.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import Any, Final

ENDS_WITHOUT_WAITING: Final = ("fin", "drop", "linger")
ENDS_AFTER_PEERS: Final = ("close", "rdwr")
BREAKS_OFF: Final = ("rude", "reset")


@dataclass
class Side:
    """One end of one connection.

    style       blocking, timeouts (every call has a short one) or nonblocking (with a poller)
    starts      writes now, after the first byte it has read (or the end of file), or after the end of file
    chunks      what it writes, call by call
    stop_after  reads so many bytes and then no more; None: to the end of file
    ending      fin, drop, linger: says FIN when all is written, whatever the peer does; then close(), or the last
                reference dropped, or close() with SO_LINGER. close, rdwr: after the peer's FIN. rude: close() with
                whatever is unread; reset: the same with SO_LINGER 0
    """

    style: str = "blocking"
    starts: str = "now"
    chunks: list[int] = field(default_factory=list)
    write_stalls: dict[str, float] = field(default_factory=dict)
    read_bytes: int = 65_536
    read_stalls: list[tuple[int, float]] = field(default_factory=list)
    stop_after: int | None = None
    ending: str = "fin"
    send_buffer_bytes: int = 0
    receive_buffer_bytes: int = 0
    nodelay: bool = False
    keepalive: bool = False
    call: str = "plain"

    @property
    def total(self) -> int:
        return sum(self.chunks)


@dataclass
class Connection:
    """`is_mute`: connects, says nothing and closes."""

    listener: int
    delay: float
    connect_style: str
    connect_timeout: float
    is_mute: bool
    shares_port: bool
    client: Side
    server: Side


@dataclass
class Listener:
    """`server_first`: its one connection's acceptor writes before it knows who has come."""

    backlog: int
    style: str
    accept_delay: float
    server_first: bool


@dataclass
class Direction:
    """Rates are probabilities per datagram."""

    loss: float = 0.0
    burst_loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    late_duplicate: float = 0.0
    garbage: float = 0.0
    truncate: float = 0.0
    rate_bytes: float = 0.0
    queue_bytes: int = 0
    mtu_bytes: int = 0


@dataclass
class Outage:
    """Nothing passes in these directions from `at` on, or from when so many packets of `after_type` have passed."""

    at: float
    seconds: float
    directions: str
    after_type: int = -1
    after_count: int = 1


@dataclass
class Path:
    """`heals_at`: from then on nothing is done to anything any more.

    drops     [direction, packet type, how many of the first ones of each flow]
    rebinds   when the relay's outer ports change, as a NAT's do that has forgotten its mappings
    """

    heals_at: float
    to_server: Direction
    to_client: Direction
    outages: list[Outage]
    drops: list[tuple[str, int, int]]
    rebinds: list[float]
    rebind_sends_icmp: bool
    is_batching: bool

    @property
    def forgets(self) -> bool:
        """Whether an end may learn only by its own timeouts that its connection was cut off."""
        return bool(self.rebinds)

    @property
    def longest_outage(self) -> float:
        return sum(outage.seconds for outage in self.outages)


@dataclass
class Plan:
    seed: int
    family: str
    client_kind: str
    server_kind: str
    listeners: list[Listener]
    connections: list[Connection]
    path: Path

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


KINDS: Final = {
    "thread": {},
    "plain": {"UTPSOCKET_OFFLOAD": "0"},
    "process": {"UTPSOCKET_ENGINE": "process"},
    "poll": {"UTPSOCKET_POLLER": "poll"},
    "small": {"UTPSOCKET_UDP_BUFFER": "0"},
}
_KIND_WEIGHTS: Final = (50, 15, 20, 7, 8)
DATA, FIN, STATE, RESET, SYN = range(5)


def draw(seed: int) -> Plan:
    """The run that this seed means."""
    dice = random.Random(seed)
    kinds = dice.choices(list(KINDS), _KIND_WEIGHTS, k=2)
    listeners = [_listener(dice) for _ in range(dice.choice((1, 1, 1, 2, 3)))]
    amount = dice.choices((1, 2, 4, 8, 16), (35, 25, 20, 14, 6))[0]
    pool = [i for i, listener in enumerate(listeners) if not listener.server_first]
    connections = [_connection(dice, i, True, amount) for i, listener in enumerate(listeners) if listener.server_first]
    connections += [_connection(dice, dice.choice(pool), False, amount) for _ in range(amount) if pool]
    return Plan(
        seed,
        dice.choice(("IPv4", "IPv4", "IPv6")),
        kinds[0],
        kinds[1],
        listeners,
        connections,
        _path(dice),
    )


def _listener(dice: random.Random) -> Listener:
    return Listener(
        dice.choice((1, 2, 5, 128, 128)),
        dice.choice(("blocking", "timeouts", "nonblocking")),
        dice.choice((0, 0, 0, dice.uniform(0, 1))),
        dice.random() < 0.3,
    )


def _connection(dice: random.Random, listener: int, server_first: bool, amount: int) -> Connection:
    client, server = _side(dice, amount), _side(dice, amount)
    is_mute = not server_first and dice.random() < 0.05
    if is_mute:
        client = Side(ending=dice.choice(("fin", "drop", "rude", "reset")))
        server = Side()
    server.starts = "now" if server_first else dice.choice(("first", "first", "eof"))
    client.starts = dice.choice(("now", "now", "first", "eof"))
    if server.starts == "eof":
        client.starts = "now"
        client.ending = dice.choice(ENDS_WITHOUT_WAITING)
    if client.starts == "first" and (not server.total or server.ending in ENDS_AFTER_PEERS):
        client.starts = "now"
    if is_mute:
        client.starts = "now"
    if client.starts == "eof":
        server.ending = dice.choice(ENDS_WITHOUT_WAITING)
    if client.ending in ENDS_AFTER_PEERS and server.ending in ENDS_AFTER_PEERS:
        server.ending = "fin"
    for side, peer in ((client, server), (server, client)):
        if side.starts == "first" and side.call == "all":
            side.call = "plain"  # its first byte would come only with many others
        side.stop_after = None
        if side.ending in BREAKS_OFF:
            side.stop_after = int(peer.total * dice.choice((0, dice.random(), 1)))
    return Connection(
        listener,
        dice.choice((0, 0, dice.uniform(0, 0.5))),
        dice.choice(("blocking", "blocking", "nonblocking", "timeouts")),
        dice.choice((0.02, 0.2, 1.0)),
        is_mute,
        dice.random() < 0.15,
        client,
        server,
    )


def _side(dice: random.Random, amount: int) -> Side:
    most = dice.choices((0, 100, 20_000, 300_000, 3_000_000), (8, 22, 32, 28, 10))[0] // (1 if amount < 8 else 4)
    total = dice.randint(0, most)
    largest = dice.choice((7, 1_000, 20_000, 400_000))
    largest = max(largest, total // 600)
    chunks = []
    while total > 0:
        chunk = min(total, dice.randint(1, largest))
        chunks.append(chunk)
        total -= chunk
    stalls = {
        str(dice.randrange(len(chunks))): round(dice.choice((0.01, 0.1, dice.uniform(0, 1))), 3)
        for _ in range(dice.choice((0, 0, 1, 3)))
        if chunks
    }
    return Side(
        style=dice.choice(("blocking", "blocking", "timeouts", "nonblocking")),
        chunks=chunks,
        write_stalls=stalls,
        read_bytes=dice.choice((13, 1_000, 65_536, 65_536, 1_000_000)),
        read_stalls=sorted(
            (dice.choice((0, dice.randint(0, 200_000))), round(dice.choice((0.05, dice.uniform(0, 1))), 3))
            for _ in range(dice.choice((0, 0, 1, 2)))
        ),
        ending=dice.choices(
            (*ENDS_WITHOUT_WAITING, *ENDS_AFTER_PEERS, *BREAKS_OFF),
            (40, 8, 8, 15, 8, 12, 9),
        )[0],
        send_buffer_bytes=dice.choice((0, 0, 0, 0, 4_096, 50_000)),
        receive_buffer_bytes=dice.choice((0, 0, 0, 0, 4_096, 50_000)),
        nodelay=dice.random() < 0.3,
        keepalive=dice.random() < 0.1,
        call=dice.choice(("plain", "plain", "plain", "into", "message", "peek", "all")),
    )


def _path(dice: random.Random) -> Path:
    there, back = Direction(), Direction()
    path = Path(dice.uniform(0.5, 4), there, back, [], [], [], dice.random() < 0.5, dice.random() < 0.5)
    delay = dice.choice((0, 0, 0.001, 0.02, 0.15))
    there.delay = back.delay = delay
    ills = dice.sample(_ILLS, dice.choices((0, 1, 2, 3), (6, 40, 34, 20))[0])
    for ill in ills:
        ill(dice, path)
    for outage in path.outages:
        path.heals_at = max(path.heals_at, outage.at + outage.seconds)
    return path


def _either(dice: random.Random, path: Path) -> list[Direction]:
    return dice.choice(([path.to_server], [path.to_client], [path.to_server, path.to_client]))


def _loss(dice: random.Random, path: Path) -> None:
    for one in _either(dice, path):
        one.loss = dice.choice((0.01, 0.05, 0.2, 0.4))


def _bursts(dice: random.Random, path: Path) -> None:
    for one in _either(dice, path):
        one.burst_loss = dice.choice((0.005, 0.03))


def _jitter(dice: random.Random, path: Path) -> None:
    for one in _either(dice, path):
        one.jitter = dice.choice((0.002, 0.03, 0.2))
        one.reorder = dice.choice((0.05, 0.5, 1.0))


def _duplicates(dice: random.Random, path: Path) -> None:
    for one in _either(dice, path):
        one.duplicate = dice.choice((0.02, 0.3, 1.0))
        one.late_duplicate = dice.choice((0, 0, 0.02))


def _outage(dice: random.Random, path: Path) -> None:
    directions = dice.choice(("both", "both", "to_server", "to_client"))
    seconds = dice.choice((0.3, 1.2, dice.uniform(0, 4)))
    if dice.random() < 0.4:
        path.outages.append(Outage(0, seconds, directions, dice.choice((SYN, STATE, STATE, DATA, FIN))))
        path.heals_at = max(path.heals_at, seconds + 1)
    else:
        path.outages.append(Outage(dice.choice((0, dice.uniform(0, 2))), seconds, directions))


def _flaps(dice: random.Random, path: Path) -> None:
    at = dice.uniform(0, 0.5)
    for _ in range(dice.randint(2, 6)):
        seconds = dice.uniform(0.05, 0.5)
        path.outages.append(Outage(at, seconds, "both"))
        at += seconds + dice.uniform(0.05, 0.5)


def _drops(dice: random.Random, path: Path) -> None:
    for _ in range(dice.randint(1, 3)):
        direction = dice.choice(("to_server", "to_client"))
        path.drops.append((direction, dice.choice((DATA, FIN, FIN, STATE, STATE, RESET, SYN)), dice.randint(1, 4)))


def _rebind(dice: random.Random, path: Path) -> None:
    path.rebinds.append(dice.choice((dice.uniform(0, 0.2), dice.uniform(0.2, 2))))


def _narrow(dice: random.Random, path: Path) -> None:
    for one in _either(dice, path):
        one.rate_bytes = dice.choice((30_000, 300_000, 3_000_000))
        one.queue_bytes = dice.choice((5_000, 50_000, 500_000))


def _small(dice: random.Random, path: Path) -> None:
    for one in _either(dice, path):
        one.mtu_bytes = dice.choice((548, 1_000, 1_252, 1_400))


def _junk(dice: random.Random, path: Path) -> None:
    for one in _either(dice, path):
        one.garbage = dice.choice((0, 0.02, 0.2))
        one.truncate = dice.choice((0, 0.02, 0.1))


_ILLS: Final = (
    _loss,
    _loss,
    _bursts,
    _jitter,
    _jitter,
    _duplicates,
    _outage,
    _outage,
    _outage,
    _flaps,
    _drops,
    _drops,
    _rebind,
    _narrow,
    _junk,
    _small,
)
