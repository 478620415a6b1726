"""The numbers that the documents give are those of the code: a constant that changes takes its sentence along."""

from __future__ import annotations

import re

import pytest

from tests.docs.documents import DOCS, rows, without_code
from tests.properties.states import attribute_names
from utpsocket import options, stats
from utpsocket.engine import environment, exit_flush
from utpsocket.engine.channels import receive_buffer
from utpsocket.engine.interpreter import switch_interval
from utpsocket.engine.kernel import high_fds
from utpsocket.engine.ports import connection_config, endpoint, listener, receive_shares, send_grants, stateless_resets
from utpsocket.engine.user_fds import socket_state
from utpsocket.green import yielding
from utpsocket.protocol import (
    close_timers,
    config,
    connection,
    handshake,
    keepalive,
    outstanding,
    pacing,
    packet,
    pathmtu,
    paws,
    peerlimits,
    reassembly,
    receivehalf,
    recovery,
    runs,
    sendhalf,
    times,
    validation,
)
from utpsocket.protocol.congestion import (
    CONTROLLERS,
    base_delay,
    clock_skew,
    controller,
    ledbat,
    ledbat_plus_plus,
    slow_start,
)
from utpsocket.sockets import fd_pair, option_calls, rules


def number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def seconds(value_us: float) -> str:
    return number(value_us / 1_000_000)


def ms(value_us: float) -> str:
    return number(value_us / 1_000)


def kib(value_bytes: int) -> str:
    return number(value_bytes / 1024)


def mib(value_bytes: int) -> str:
    return number(value_bytes / 1024 / 1024)


SYN_TIMES = [seconds(((1 << tried) - 1) * handshake.SYN_RTO_US) for tried in range(handshake.SYN_TRIES)]
GIVE_UP = seconds(((1 << handshake.SYN_TRIES) - 1) * handshake.SYN_RTO_US)
PROBING = keepalive.default_probing(keepalive.NAT_KEEPALIVE_SECONDS * 1_000_000)

# (document, what stands there with blanks where it has line ends)
FACTS = [
    ("protocol", f"a header of {packet.HEADER_BYTES} bytes"),
    ("protocol", {8: "more than eight links"}[packet.MAX_EXTENSIONS]),
    ("protocol", {8: "is kept (eight at most)"}[handshake._MAX_EARLY_PACKETS]),
    ("protocol", f"comes a second time after {seconds(handshake._RETRANSMITTED_AFTER_US)} s or more"),
    ("protocol", f"sent after {', '.join(SYN_TIMES[:-1])} and {SYN_TIMES[-1]} s"),
    ("protocol", f"fails with ETIMEDOUT at {GIVE_UP} s"),
    ("protocol", f"So {seconds(handshake.NEW_ID_AFTER_US)} s after each repeated SYN"),
    ("protocol", {4: "fresh id (three at most)"}[connection_config.IDS_PER_DIAL]),
    ("protocol", f"is padded to {number(packet.LARGE_SYN_BYTES)} bytes"),
    ("protocol", f"more than {number(handshake._NEW_NUMBER_DISTANCE)} away"),
    ("protocol", f"same STATE, at most every {seconds(handshake.SYN_ACK_INTERVAL_US)} s"),
    ("protocol", f"Ours carries {handshake.ACKS_SYN_ACK:#x}."),
    ("protocol", {7: "seven times, with doubled waits"}[handshake.HANDSHAKE_ACKS]),
    ("protocol", f"{connection.AMPLIFICATION_CREDIT_BYTES} bytes of IP packets for each SYN"),
    ("protocol", f"one DATA of at most {sendhalf._UNVERIFIED_BYTES} bytes of payload"),
    ("protocol", f"A half-open connection ends after {seconds(handshake.HALF_OPEN_US)} s."),
    ("protocol", f"it returns {ms(listener._VERIFICATION_WAIT_US)} ms after the SYN"),
    ("protocol", f"has more than {listener._FEW_HALF_OPEN} unverified connections"),
    ("protocol", f"Beyond {listener.MAX_HALF_OPEN} half-open connections"),
    ("protocol", f"We give up quietly after {seconds(close_timers.UNACKED_FIN_US)} s"),
    ("protocol", f"number − 1 − {validation.ACK_SLACK} and the last"),
    ("protocol", f"more than {number(reassembly.MAX_OUT_OF_ORDER_PACKETS)} packets ahead"),
    ("protocol", f"noted every {number(paws.MARK_PACKETS)} packets"),
    ("protocol", f"and for {number(paws.FORGET_US / 60_000_000)} minutes"),
    ("protocol", f"everything has been refused for {seconds(paws.RESTEP_US)} s"),
    ("protocol", f"after {seconds(keepalive.DOUBTFUL_RESET_US)} s and two round trips"),
    ("protocol", f"one in {seconds(stateless_resets._AGAIN_US)} s for each connection"),
    ("protocol", f"{number(stateless_resets.PER_SOURCE_AND_SECOND)} a second for each source"),
    ("protocol", f"{number(stateless_resets.PER_SECOND)} a second for each port"),
    ("protocol", f"at most {packet.MAX_SACK_BYTES}, and **only on STATE packets**"),
    ("protocol", f"**{packet._EXTENSION_PADDING}, padding**"),
    ("protocol", f"**{packet.EXTENSION_PIECE}, pieces**"),
    ("protocol", "after {}, {} and {} received packets".format(*map(number, receivehalf._CAPABILITY_SACK_AT_PACKETS))),
    ("protocol", f"up to {number(peerlimits.LARGE_REORDER_PACKETS)} packets in flight"),
    ("protocol", f"Our window begins at {kib(receive_buffer.FIRST_WINDOW_BYTES)} KiB"),
    ("protocol", f"what the program reads, up to {mib(receive_shares.SHORT_PATH_WINDOW_BYTES)} MiB, over long paths"),
    ("protocol", f"over long paths {mib(receive_shares.MAX_WINDOW_BYTES)} MiB"),
    ("protocol", f"hold of what comes in {ms(receive_shares.SHORT_PATH_US)} ms"),
    ("protocol", f"at most {mib(receivehalf.WIRESHARK_WINDOW_BYTES)} MiB ({receivehalf.WIRESHARK_WINDOW_BYTES:#x})"),
    ("protocol", f"until {mib(receivehalf._LARGE_WINDOW_AFTER_BYTES)} MiB have been received"),
    ("protocol", f"a window below {number(receivehalf._SEGMENT_BYTES)} bytes is advertised as 0"),
    ("protocol", f"that opens by {number(receivehalf._WINDOW_UPDATE_BYTES)} bytes or half the buffer"),
    ("protocol", f"at most {seconds(outstanding.MAX_PERSIST_US)} s. libutp probes"),
    ("protocol", f"it ends after {seconds(outstanding.ORPHAN_CLOSED_WINDOW_US)} s"),
    ("protocol", f"In flight are at most {peerlimits.DEFAULT_REORDER_PACKETS} packets"),
    ("protocol", f"(at least {peerlimits._MIN_REORDER_PACKETS})"),
    ("protocol", f"sent nothing for {keepalive.NAT_KEEPALIVE_SECONDS} s"),
    ("protocol", f"begins after {seconds(PROBING.idle_us)} s of silence, every {seconds(PROBING.interval_us)} s"),
    ("protocol", {9: "after nine probes without an answer"}[PROBING.count]),
    ("protocol", f"A lone packet in order is acked after {ms(times.ACK_DELAY_US)} ms"),
    ("protocol", f"twice as long as that answer took, {ms(receivehalf._LONGEST_ACK_DELAY_US)} ms at most"),
    ("protocol", {3: "when three packets sent after it have been sacked"}[recovery.DUPLICATE_THRESHOLD]),
    ("protocol", f"two round trips, {ms(times.ACK_DELAY_US)} ms and some variance"),
    ("protocol", f"max({ms(recovery._LIBUTP_ACK_DELAY_US)} ms, 4 × variance)"),
    ("protocol", f"at least {ms(recovery.MIN_RTO_US)} ms"),
    ("protocol", f"{seconds(recovery.INITIAL_RTO_US)} s before the first sample"),
    ("protocol", f"doubled at each timeout, at most {seconds(recovery.MAX_RTO_US)} s"),
    ("protocol", {6: "after seven timeouts in a row"}[outstanding.MAX_TIMEOUTS]),
    ("protocol", f"{seconds(outstanding.GIVE_UP_AFTER_US)} s without progress"),
    ("protocol", f"{seconds(outstanding.ORPHAN_GIVE_UP_AFTER_US)} s after the last `close()`"),
    ("protocol", f"{pathmtu.FLOOR_BYTES} bytes of UDP payload on IPv4, {number(pathmtu.FLOOR_IPV6_BYTES)} on IPv6"),
    ("protocol", f"and {number(pathmtu.START_IPV4_BYTES)} to 127.0.0.0/8"),
    ("protocol", f"after every {pathmtu._WAIT_FOR_PACKETS} full packets"),
    ("protocol", "Sizes tried: {} and {}".format(*map(number, pathmtu._SEARCH_STEPS))),
    ("protocol", f"until {pathmtu._DONE_WITHIN_BYTES} bytes are left"),
    ("protocol", {3: "Three lost probes"}[pathmtu._MAX_PROBES]),
    ("protocol", f"begins again after {number(pathmtu.SEARCH_AGAIN_US / 60_000_000)} minutes"),
    (
        "protocol",
        f"is {number(pathmtu.CEILING_IPV4_BYTES)} bytes on IPv4 and {number(pathmtu.CEILING_IPV6_BYTES)} on IPv6",
    ),
    ("protocol", {2: "Two timeouts in a row of packets larger"}[outstanding._BLACK_HOLE_TIMEOUTS]),
    ("protocol", "again in pieces of 249 bytes"),
    ("protocol", f"Target: {ms(ledbat.TARGET_DELAY_US)} ms of queueing delay"),
    ("protocol", f"at most {number(ledbat.MAX_GAIN_BYTES)} bytes × (target"),
    ("protocol", {3: "the last three samples"}[sum("_sample" in name for name in attribute_names(ledbat.Ledbat))]),
    ("protocol", {13: "thirteen one-minute minima"}[base_delay.BASE_MINUTES]),
    ("protocol", {2: "Least window: two packets."}[controller.MIN_PACKETS]),
    ("protocol", {10: "Slow start begins with ten packets"}[controller.INITIAL_PACKETS]),
    ("protocol", {4: "by a quarter per round trip (RFC 9406)"}[slow_start.CSS_GROWTH_DIVISOR]),
    ("protocol", f"at most {number(clock_skew.MAX_SKEW_PPB // 1_000)} ppm"),
    ("protocol", f"rises by {ms(base_delay.MIN_STEP_US)} ms or more"),
    ("protocol", f"for {seconds(base_delay.FLAT_SLICES * base_delay.SLICE_US)} s does not fall"),
    ("protocol", f"Its target is {ms(ledbat_plus_plus.TARGET_DELAY_US)} ms. Growth per round trip: 3,000 bytes"),
    ("protocol", {3_000: "3,000 bytes (the draft"}[ledbat_plus_plus.GAIN_BYTES]),
    ("protocol", {4: "from three quarters of the"}[ledbat_plus_plus._GAIN_SLOPE]),
    ("protocol", f"less, {number(ledbat_plus_plus.MIN_GAIN_BYTES)} bytes at the target"),
    ("protocol", f"at some time of each of the last {ledbat_plus_plus._GAP_ROUNDS} round trips"),
    ("protocol", {2: "two round trips after slow start"}[ledbat_plus_plus.FIRST_SLOWDOWN_RTTS]),
    ("protocol", f"then after {ledbat_plus_plus.SLOWDOWN_FACTOR} times as long as the last one took"),
    ("protocol", f"took, {seconds(ledbat_plus_plus.MIN_SLOWDOWN_INTERVAL_US)} s at least"),
    ("protocol", {4: "wait four times as long, up to"}[ledbat_plus_plus._GROWTH]),
    ("protocol", f"times as long, up to {seconds(ledbat_plus_plus.MAX_SLOWDOWN_INTERVAL_US)} s"),
    ("protocol", f"doubles after each {seconds(ledbat_plus_plus.TARGET_DOUBLES_US)} s without a loss"),
    ("protocol", f"is longer than {ms(pacing.PACED_FROM_RTT_US)} ms, a burst is about {ms(pacing._BURST_US)} ms"),
    ("protocol", f"{seconds(close_timers.TIME_WAIT_US)} s or 1.5 timeouts"),
    ("protocol", f"known to be lost, {seconds(close_timers.MAX_TIME_WAIT_US)} s at most"),
    (
        "protocol",
        (
            f"after {seconds(close_timers.HALF_CLOSED_PROBE_US)} s, "
            f"then after doubled times up to {seconds(close_timers._MAX_HALF_CLOSED_PROBE_US)} s"
        ),
    ),
    ("protocol", {9: "without an answer to nine probes"}[close_timers._HALF_CLOSED_PROBES]),
    ("protocol", f"does not finish is reset {seconds(close_timers.FIN_WAIT_US)} s later"),
    ("protocol", f"at the latest after {seconds(close_timers.ABORT_FLUSH_US)} s"),
    ("design", f"a grant of at most {kib(config.GRANT_BYTES)} KiB"),
    ("design", f"More than {send_grants._UNORDERED_MEMBERS} connections to one address"),
    (
        "design",
        (
            f"and {kib(send_grants._MORE_PER_GRANT_BYTES)} KiB more after each grant without a loss, "
            f"up to {kib(send_grants._MAX_IN_FLIGHT_BYTES)} KiB"
        ),
    ),
    ("design", f"system calls of {runs.packets_per_send(1_472)} packets each"),
    ("design", f"the window begins at {kib(receive_buffer.FIRST_WINDOW_BYTES)} KiB"),
    ("design", f"is bounded: {number(endpoint._BYTES_PER_ITERATION)} bytes, {endpoint._RUNS_PER_ITERATION} runs or"),
    ("design", f"runs or {endpoint._DATAGRAMS_PER_ITERATION} single datagrams"),
    ("guide/use", f"fails with `TimeoutError` (`ETIMEDOUT`) after {GIVE_UP} s"),
    ("guide/use", f"{option_calls._MIN_MTU} to {number(option_calls._MAX_UDP_PAYLOAD)}"),
    ("guide/use", f"at most {number(option_calls._MAX_KEEPALIVE_SECONDS)}; {keepalive.NAT_KEEPALIVE_SECONDS} at first"),
    ("guide/use", f"there is {', '.join(f'`b{name!r}`' for name in CONTROLLERS)}".replace("'", '"')),
    ("guide/patching", f"`fallback_delay={rules.DEFAULT_FALLBACK_SECONDS}`"),
    ("guide/green", f"a switch interval of {switch_interval.SWITCH_SECONDS * 1_000:g} ms"),
    ("guide/green", f"pieces of about {yielding.BURST_SECONDS * 1_000:g} ms"),
    ("guide/forking", f"up to {number(exit_flush.DEFAULT_TOTAL_SECONDS)} s in all"),
    ("guide/forking", f"for a silent peer {number(exit_flush.DEFAULT_FLUSH_SECONDS)} s without progress"),
    ("guide/nat", f"sends a packet every {keepalive.NAT_KEEPALIVE_SECONDS} s"),
    ("guide/tuning", f"{kib(receive_buffer.FIRST_WINDOW_BYTES)} KiB at first"),
    ("guide/tuning", f"up to {mib(receive_shares.SHORT_PATH_WINDOW_BYTES)} MiB, over long paths"),
    ("guide/tuning", f"over long paths {mib(receive_shares.MAX_WINDOW_BYTES)} MiB |"),
    ("guide/tuning", f"congestion window, up to {mib(receive_shares.MAX_WINDOW_BYTES)} MiB |"),
    ("guide/tuning", f"waits for the CPU, {ms(receive_shares.SHORT_PATH_US)} ms"),
    ("guide/tuning", f"is longer than {ms(pacing.PACED_FROM_RTT_US)} ms. Both stop at"),
    ("guide/tuning", f"In flight are {number(peerlimits.LARGE_REORDER_PACKETS)} packets at most"),
    ("guide/tuning", f"grows along, up to {kib(receive_buffer._MAX_PAIR_BYTES)} KiB"),
    ("guide/tuning", f"{mib(connection_config._SEND_BYTES)} MiB; over long paths twice"),
    (
        "guide/tuning",
        f"{kib(fd_pair._USER_BUFFER_BYTES)} KiB; {kib(fd_pair._REMOTE_BUFFER_BYTES)} KiB with the engine in",
    ),
    ("guide/tuning", f"1.5 · *n* − {number(socket_state._PIECE_BYTES)} bytes"),
    ("guide/tuning", {4: "up to four packets that are shorter than full"}[sendhalf._SMALL_PACKETS]),
    ("guide/tuning", f"15 minutes ({seconds(outstanding.GIVE_UP_AFTER_US)} s)"),
    ("guide/tuning", f"given up after {seconds(PROBING.max_silence_us)} s"),
    ("differences-from-tcp", f"given up after {GIVE_UP} s"),
    ("differences-from-tcp", f"{high_fds._KEPT} are kept open in advance"),
    ("differences-from-tcp", f"waits {seconds(outstanding.ORPHAN_CLOSED_WINDOW_US)} s for a window"),
    ("differences-from-tcp", f"numbered from {number(high_fds.HIGH_FD)} up"),
]


@pytest.mark.parametrize(("document", "fact"), FACTS, ids=[f"{name}: {fact}" for name, fact in FACTS])
def test_number(document: str, fact: str) -> None:
    assert fact in re.sub(r"\s+", " ", (DOCS / f"{document}.md").read_text("utf-8"))


def test_buffers_are_what_the_options_make_of_them() -> None:
    """`SO_RCVBUF` n is read back as 2 n: 1.5 n less one piece for uTP, and n / 2 for the pair."""
    asked = 100_000
    assert socket_state.window_bytes(2 * asked) == 1.5 * asked - socket_state._PIECE_BYTES
    assert socket_state.half_buffer(2 * asked) == asked / 2


def test_every_environment_variable_is_in_the_table() -> None:
    text = (DOCS / "guide" / "tuning.md").read_text("utf-8").partition("## 7. ")[2].partition("\n## ")[0]
    named = [re.findall(r"UTPSOCKET_[A-Z_]+", line)[0] for line in text.splitlines() if line.startswith("| `UTPSOCKET")]
    assert sorted(named) == sorted(environment._READERS)


def test_every_variable_that_is_named_is_one() -> None:
    names = {
        name
        for document in DOCS.rglob("*.md")
        for name in re.findall(r"UTPSOCKET_[A-Z_]+", document.read_text("utf-8"))
    }
    assert {name for name in names - set(environment._READERS) if not name.startswith(environment._TOOLS)} == set()


def test_each_option_is_in_the_group_of_the_guide() -> None:
    text = (DOCS / "guide" / "use.md").read_text("utf-8").partition("## 4. ")[2].partition("\n## ")[0]
    groups = {
        name: set(names.split()) for name, names in ((each.name, options.EFFECTS[each]) for each in options.Effect)
    }
    documented = dict(re.findall(r"^\| `((?!UTP_)[A-Z_]+)` \| (.*) \|$", text, re.MULTILINE))
    assert documented.keys() == groups.keys()
    for group, row in documented.items():
        names = set(re.findall(r"`((?:SO|TCP|IP|IPV6)_[A-Z0-9_]+)`", row))
        assert names and names <= groups[group]
    own = {name for name in groups["UTP"] | groups["READ_ONLY"] if name.startswith("UTP_")}
    assert set(re.findall(r"^\| `(UTP_[A-Z_]+)` \|", text, re.MULTILINE)) == own


def test_every_figure_of_a_connection_is_explained() -> None:
    text = (DOCS / "guide" / "use.md").read_text("utf-8").partition("## 5. ")[2].partition("\n## ")[0]
    table = without_code(text).partition("| field | meaning |")[2]
    named = {name for row in rows("head\n" + table.strip()) for name in re.findall(r"\w+", row[0])}
    assert named == set(stats.ConnectionStats._fields)
