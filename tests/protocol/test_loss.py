"""docs/protocol.md §9: what counts as lost, and when it leaves again."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from tests.protocol.wire import RTT_US, Wire
from tests.simulator import WRAP_SEQ, Application, Pair, Simulator, path
from utpsocket.protocol import State
from utpsocket.protocol.outstanding import GIVE_UP_AFTER_US, ORPHAN_GIVE_UP_AFTER_US
from utpsocket.protocol.recovery import MAX_RTO_US


def sender(base: int, packets: int) -> Wire:
    """That many full packets are under way, one round trip ago."""
    wire = Wire.initiator(base)
    wire.write_bytes(packets * 1_380)
    wire.send()
    wire.wait(RTT_US)
    assert wire.connection.stats().sent_packets == packets
    wire.send()
    return wire


def texts(lines: list[str]) -> list[str]:
    return [line.split(" ", 1)[1] for line in lines]


def test_three_sacked_above_are_loss_and_two_are_not_yet(base: int) -> None:
    wire = sender(base, 10)
    wire.receive("STATE seq=1 ack=0 sack=03")
    assert wire.send() == []
    wire.receive("STATE seq=1 ack=0 sack=07")
    assert wire.send() == ["DATA seq=1 ack=0 len=1380"]
    assert wire.connection.stats().lost_packets == 1


def test_each_packet_leaves_again_once_per_round(base: int) -> None:
    wire = sender(base, 10)
    wire.receive("STATE seq=1 ack=0 sack=07", "STATE seq=1 ack=0 sack=0f", "STATE seq=1 ack=0 sack=1f")
    assert wire.send() == ["DATA seq=1 ack=0 len=1380"]
    wire.receive("STATE seq=1 ack=0 sack=3f", "STATE seq=1 ack=0 sack=7f")
    assert wire.send() == []


def test_three_plain_duplicates_where_the_peer_sends_no_sack(base: int) -> None:
    wire = sender(base, 10)
    wire.receive("STATE seq=1 ack=1", "STATE seq=1 ack=1", "STATE seq=1 ack=1")
    assert wire.send() == []
    wire.receive("STATE seq=1 ack=1")
    assert wire.send() == ["DATA seq=2 ack=0 len=1380"]


def test_the_next_hole_follows_the_repaired_one_without_new_duplicates(base: int) -> None:
    """NewReno's partial ack, by time: what left before a packet that was acked is lost. RFC 8985."""
    wire = sender(base, 10)
    wire.receive(*["STATE seq=1 ack=1"] * 4)
    assert wire.send() == ["DATA seq=2 ack=0 len=1380"]
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=6")
    assert [*wire.send(), *texts(wire.wait(10_000))] == ["DATA seq=7 ack=0 len=1380"]


@pytest.mark.parametrize(
    "line",
    [
        "STATE seq=1 ack=0 wnd=900000",  # a window update
        "DATA seq=1 ack=0 len=9",  # data carries its ack anyway
        "STATE seq=1 ack=-1",  # a keepalive, or overtaken
        "STATE seq=1 ack=-2",
    ],
)
def test_what_is_no_duplicate(base: int, line: str) -> None:
    wire = sender(base, 10)
    for number in range(8):
        wire.receive(
            line.replace("900000", str(2_000_000 + number)).replace("seq=1 ack=0 len", f"seq={number + 1} ack=0 len")
        )
    assert wire.connection.stats().lost_packets == 0


def test_where_packets_were_reordered_only_time_is_loss(base: int) -> None:
    """RACK: a packet that came late, not lost, teaches patience."""
    wire = sender(base, 10)
    wire.receive("STATE seq=1 ack=0 sack=01", "STATE seq=1 ack=2")
    wire.receive("STATE seq=1 ack=2 sack=07")
    assert wire.send() == [], "three above, but this path reorders"
    sent = wire.wait(10_000)
    assert texts(sent) == ["DATA seq=3 ack=0 len=1380"]
    assert 1 <= float(sent[0].split()[0]) - wire.now / 1000 + 10 <= 6, "a quarter of the round trip later"


def test_one_congestion_cut_per_round_trip(base: int) -> None:
    wire = sender(base, 10)
    before = wire.connection.stats().cwnd_bytes
    wire.receive("STATE seq=1 ack=0 sack=0e")
    after = wire.connection.stats().cwnd_bytes
    assert after == before // 2
    wire.receive("STATE seq=1 ack=0 sack=fe", "STATE seq=1 ack=3 sack=0e")
    assert wire.connection.stats().lost_packets == 2
    assert wire.connection.stats().cwnd_bytes >= after


def test_the_first_retransmission_does_not_wait_for_the_window(base: int) -> None:
    wire = sender(base, 10)
    wire.receive("STATE seq=1 ack=0 sack=07")
    stats = wire.connection.stats()
    assert stats.in_flight_bytes > stats.cwnd_bytes
    assert wire.send() == ["DATA seq=1 ack=0 len=1380"]


def test_a_silent_tail_is_probed_after_two_round_trips(base: int) -> None:
    wire = sender(base, 4)
    wire.receive("STATE seq=1 ack=3")
    sent = wire.wait(60_000)
    assert texts(sent) == ["DATA seq=4 ack=0 len=1380"]
    assert wire.connection.stats().tail_probes == 1
    assert wire.connection.stats().timeouts == 0


@pytest.mark.parametrize("rtt_us", [70_000, 150_000, 400_000, 1_200_000])
def test_round_trips_that_have_become_longer_are_soon_measured(base: int, rtt_us: int) -> None:
    """A packet that was sent twice gives no sample: were each of them probed for, there would never be one. So each
    probe makes the next one wait for longer.
    """
    wire = Wire.initiator(base)
    probes = []
    for number in range(1, 41):
        before = wire.connection.stats().tail_probes
        wire.write_bytes(100)
        assert wire.send() == [f"DATA seq={number} ack=0 len=100"]
        wire.wait(RTT_US if number <= 10 else rtt_us)
        wire.receive(f"STATE seq=1 ack={number}")
        probes.append(wire.connection.stats().tail_probes - before)
    assert probes[:10] == [0] * 10
    assert sum(probes[10:]) <= 8
    assert probes[20:] == [0] * 20
    assert wire.connection.send.recovery.srtt_us > rtt_us // 2


def test_a_single_probe_does_not_lengthen_the_timeout(base: int) -> None:
    """It may have been for a loss: then the next one is as soon as a round trip has been measured."""
    wire = sender(base, 4)
    recovery = wire.connection.send.recovery
    wire.receive("STATE seq=1 ack=3")
    rto_us, probe_timeout_us = recovery.rto_us, recovery.probe_timeout_us
    assert texts(wire.wait(60_000)) == ["DATA seq=4 ack=0 len=1380"]
    assert (recovery.rto_us, recovery.probe_timeout_us) == (rto_us, 2 * probe_timeout_us)
    wire.receive("STATE seq=1 ack=4")
    wire.write_bytes(100)
    wire.send()
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=5")
    assert recovery.probe_timeout_us <= probe_timeout_us


@pytest.mark.parametrize("rtt_us", [20_000, 100_000, 350_000])
@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
def test_a_lost_last_packet_costs_two_round_trips_and_50_ms(rtt_us: int, first_seq: int) -> None:
    def arrival(mask: tuple[int, ...]) -> int:
        simulator = Simulator(1)
        pair = Pair(
            simulator,
            path(simulator, delay_us=rtt_us // 2, mask=mask),
            path(simulator, delay_us=rtt_us // 2),
            a=Application(1_380 * 8, writes=1, expects=2, hold_open=True),
            b=Application(0, writes=2, expects=1, hold_open=True),
            first_seq=first_seq,
        )
        pair.connect()
        assert simulator.run(lambda: pair.b.application.received == 1_380 * 8)
        return simulator.elapsed_us

    last = 8  # SYN, DATA
    assert arrival((last,)) - arrival(()) <= 2 * rtt_us + 50_000
    assert arrival((last - 1, last)) - arrival(()) <= 3 * rtt_us + 50_000


def test_the_timeout_is_doubled_and_ends_in_giving_up(base: int) -> None:
    """RFC 1122 §4.2.3.5: not before 100 s; here when Linux does."""
    wire = Wire.initiator(base)
    wire.write_bytes(100)
    wire.send()
    sent = wire.wait(GIVE_UP_AFTER_US)
    assert wire.events() == []
    sent += wire.wait(MAX_RTO_US)
    times = [float(line.split()[0]) for line in sent]
    gaps = [round(after - before) for before, after in pairwise(times)]
    assert gaps[:5] == [200, 400, 800, 1600, 3200]
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert texts(sent)[-1] == "RESET seq=2 ack=0"


def test_an_orphaned_connection_is_given_up_sooner(base: int) -> None:
    """RFC 1122's 100 s all the same: as Linux (tcp_orphan_retries), whose process may have ended long ago."""
    wire = Wire.initiator(base)
    wire.write_bytes(100)
    wire.finish()
    wire.connection.discard(now=wire.at)
    wire.send()
    wire.wait(ORPHAN_GIVE_UP_AFTER_US)
    assert wire.state is State.CONNECTED
    wire.wait(MAX_RTO_US)
    assert wire.state is State.CLOSED


def test_a_user_timeout_replaces_the_count(base: int) -> None:
    """TCP_USER_TIMEOUT."""
    wire = Wire.initiator(base)
    wire.connection.send.user_timeout_us = 2_000_000
    wire.write_bytes(100)
    wire.send()
    wire.wait(1_999_000)
    assert wire.state is State.CONNECTED
    wire.wait(2_000)
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]


def test_a_measured_round_trip_ends_the_backoff(base: int) -> None:
    """RFC 6298 §5, Karn and Partridge: an ack of what was sent again says that the path lives, not how long."""
    wire = Wire.initiator(base)
    wire.write_bytes(100)
    wire.send()
    wire.wait(2_000_000)
    grown_us = wire.connection.stats().rto_us
    assert grown_us > 400_000
    wire.receive("STATE seq=1 ack=1")
    assert wire.connection.stats().rto_us == min(grown_us, 3_000_000)
    wire.write_bytes(100)
    wire.send()
    wire.receive("STATE seq=1 ack=2")
    assert wire.connection.stats().rto_us == 200_000


def test_round_trips_that_outgrow_the_timeout_are_measured_in_the_end(base: int) -> None:
    """A queue has grown while the connection was idle: all acks come, and each after more than the timeout."""
    wire = Wire.initiator(base)
    timeouts = []
    for number in range(1, 13):
        wire.write_bytes(100)
        wire.send()
        wire.wait(500_000)
        wire.receive(f"STATE seq=1 ack={number}")
        timeouts.append(wire.connection.stats().timeouts)
    assert 0 < timeouts[0] <= timeouts[-1] == timeouts[2]


def test_a_retransmitted_packet_measures_no_round_trip(base: int) -> None:
    """Karn."""
    wire = Wire.initiator(base)
    before = wire.connection.stats().rtt_us
    wire.write_bytes(100)
    wire.send()
    wire.wait(700_000)
    wire.receive("STATE seq=1 ack=1")
    assert wire.connection.stats().rtt_us == before


def test_a_timeout_resends_the_first_and_takes_the_youngest_for_in_flight(base: int) -> None:
    """RFC 8985 §6.3: what left a moment ago may still arrive."""
    wire = sender(base, 10)
    wire.connection.handle_timeout(now=wire.at)
    wire.wait(80_000)  # tail probe
    wire.send()
    sent = wire.wait(250_000)
    assert texts(sent)[0] == "DATA seq=1 ack=0 len=1380"
    assert wire.connection.stats().cwnd_bytes == 1_380


def test_a_retransmission_that_was_needless_is_undone_once(base: int) -> None:
    """RFC 3522: the ack came too soon to be the retransmission's."""
    wire = sender(base, 10)
    before = wire.connection.stats().cwnd_bytes
    wire.receive("STATE seq=1 ack=0 sack=07")
    assert wire.connection.stats().cwnd_bytes < before
    assert wire.send() == ["DATA seq=1 ack=0 len=1380"]
    wire.wait(1_000)
    wire.receive("STATE seq=1 ack=4")
    assert wire.connection.stats().cwnd_bytes >= before


def test_an_early_ack_is_not_spurious_where_the_peer_has_the_retransmission(base: int) -> None:
    """A peer that acks once for all that waited in its socket's buffer takes longer than the path does."""
    wire = sender(base, 10)
    before = wire.connection.stats().cwnd_bytes
    wire.receive("STATE seq=1 ack=0 sack=07")
    assert wire.send() == ["DATA seq=1 ack=0 len=1380"]
    resent_at = wire.at
    wire.wait(1_000)
    wire.receive(f"STATE seq=1 ack=4 ts={resent_at + 700 & 0xFFFFFFFF} diff=700")
    assert wire.connection.stats().cwnd_bytes < before
    assert not wire.connection.send.recovery.has_reordered


def test_an_empty_sack_means_that_all_within_its_reach_is_missing(base: int) -> None:
    """libutp's reach 30 packets beyond the hole, and it sends one only when it holds something: which lies further."""
    wire = sender(base, 10)
    wire.connection.send.controller.window_bytes = 200_000
    wire.write_bytes(60 * 1_380)
    wire.send()
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=10")
    before = wire.connection.stats().cwnd_bytes
    wire.receive("STATE seq=1 ack=10 sack=00000000")
    stats = wire.connection.stats()
    assert stats.lost_packets == 31 and stats.cwnd_bytes == before // 2
    wire.receive("STATE seq=1 ack=10 sack=00000000")
    assert wire.connection.stats().lost_packets == 31, "reported twice, it is no more"
    sent = [*wire.send(), *texts(wire.wait(RTT_US // 2))]
    assert sent[0].startswith("DATA seq=11") and wire.connection.stats().retransmitted_packets == 31


@pytest.mark.parametrize(("sack", "packets"), [("00" * 252, 60), ("00000000", 30), ("", 60)])
def test_other_empty_sacks_say_nothing(base: int, sack: str, packets: int) -> None:
    """Ours of full length only shows how many packets we hold; where nothing lies beyond its reach, it held nothing."""
    wire = sender(base, 10)
    wire.connection.send.controller.window_bytes = 200_000
    wire.write_bytes(packets * 1_380)
    wire.send()
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=10", f"STATE seq=1 ack=10 sack={sack}")
    assert wire.connection.stats().lost_packets == 0


def test_what_waited_behind_a_hole_measures_no_round_trip(base: int) -> None:
    """Its selective ack was lost; half a minute later one ack covers both, drawn by the hole's retransmission."""
    wire = Wire.initiator(base)
    before = wire.connection.stats().rtt_us
    wire.write_bytes(3_000)
    wire.send()
    wire.wait(20_000_000)
    wire.receive("STATE seq=1 ack=3")
    wire.send()
    assert wire.connection.stats().rtt_us == before
    wire.write_bytes(100)
    wire.send()
    wire.receive("STATE seq=1 ack=4")
    assert wire.connection.send.recovery.rto_us < 500_000
