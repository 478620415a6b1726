"""The bad road, the conversations and the runner of `compat peers`: none of these tests needs a foreign peer."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compat.peers import bittorrent, command, libutp, provision, swarm
from compat.peers.bittorrent import Metainfo, ProtocolError, Wire, bdecode, bencode
from compat.peers.capture import PcapWriter, describe, read_pcap, sacked
from compat.peers.case import Case, CaseFailed, Circumstances, Row, run_case
from compat.peers.children import ChildFailed, Children
from compat.peers.impairment import Impairment, Lane
from compat.peers.relay import Relay, arguments_for
from compat.peers.stream import seeded_blocks
from tests.sockets.network import own_loopback

SIZE = 1000


def fates(impairment: Impairment, *, seed: int = 5, count: int = 2000, gap_us: int = 100) -> list[tuple[int, ...]]:
    """How late each of `count` datagrams is delivered, `gap_us` apart."""
    lane = Lane(impairment, seed=seed)
    result = []
    for number in range(count):
        now = number * gap_us
        times = lane.due_times(SIZE, now=now)
        for _ in times:
            lane.left(SIZE)
        result.append(tuple(due_at - now for due_at in times))
    return result


class TestLane:
    def test_clean_road_delivers_at_once(self) -> None:
        assert set(fates(Impairment())) == {(0,)}

    def test_same_seed_same_fates(self) -> None:
        road = Impairment(loss=0.1, duplicate=0.1, reorder=0.1, jitter_us=50)
        assert fates(road) == fates(road)
        assert fates(road) != fates(road, seed=6)

    def test_loss_is_about_its_share_and_independent_of_other_faults(self) -> None:
        lost = [index for index, times in enumerate(fates(Impairment(loss=0.1))) if not times]
        assert 150 < len(lost) < 250
        others = fates(Impairment(loss=0.1, duplicate=0.2, reorder=0.2, delay_us=7, jitter_us=3))
        assert [index for index, times in enumerate(others) if not times] == lost

    def test_delay_and_jitter_keep_the_order(self) -> None:
        lates = fates(Impairment(delay_us=20_000, jitter_us=5_000))
        due = [index * 100 + late for index, (late,) in enumerate(lates)]
        assert due == sorted(due)
        assert min(late for (late,) in lates) >= 20_000
        assert max(late for (late,) in lates) > 24_000

    def test_reordered_datagrams_are_overtaken(self) -> None:
        lates = fates(Impairment(reorder=0.05, reorder_us=1_000))
        assert {late for (late,) in lates} == {0, 1_000}
        assert 60 < sum(late == 1_000 for (late,) in lates) < 140

    def test_duplicates_arrive_twice(self) -> None:
        twice = [times for times in fates(Impairment(duplicate=0.05)) if len(times) == 2]
        assert 60 < len(twice) < 140

    def test_bottleneck_spaces_datagrams_and_its_queue_is_bounded(self) -> None:
        lane = Lane(Impairment(rate_bytes_per_second=1_000_000, queue_bytes=10 * SIZE), seed=1)
        due = [lane.due_times(SIZE, now=0) for _ in range(15)]
        assert due == [(1000 * (number + 1),) for number in range(10)] + [()] * 5
        assert lane.counters()["overflowed"] == 5
        lane.left(SIZE)
        assert lane.due_times(SIZE, now=1000) == ((11_000,))


@pytest.fixture
def relay_for(request: pytest.FixtureRequest) -> Iterator[Callable[..., Relay]]:
    """Start relays on threads of their own; all are stopped and closed at the end."""
    running = []

    def start(server: tuple[str, int], impairment: Impairment, **options: Any) -> Relay:
        relay = Relay(server, impairment, **options)
        stop_read, stop_write = os.pipe()
        thread = threading.Thread(target=relay.run, args=(stop_read,), name="relay under test")
        thread.start()
        running.append((relay, thread, stop_read, stop_write))
        return relay

    yield start
    for relay, thread, stop_read, stop_write in running:
        os.close(stop_write)
        thread.join(60)
        assert not thread.is_alive()
        os.close(stop_read)
        relay.close()


def udp_socket() -> socket.socket:
    """At an address of this process alone: nothing comes there that is meant for who had the port before."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((own_loopback(), 0))
    sock.settimeout(60)
    return sock


class TestRelay:
    def test_two_clients_are_two_addresses_to_the_server(self, relay_for: Any) -> None:
        with udp_socket() as server, udp_socket() as one, udp_socket() as two:
            relay = relay_for(server.getsockname(), Impairment(delay_us=1_000))
            for client, text in ((one, b"one"), (two, b"two")):
                client.sendto(text, relay.address)
            seen = dict(server.recvfrom(100) for _ in range(2))
            assert set(seen) == {b"one", b"two"}
            assert seen[b"one"] != seen[b"two"]
            for text, address in seen.items():
                server.sendto(b"to " + text, address)
            assert one.recvfrom(100) == (b"to one", relay.address)
            assert two.recvfrom(100) == (b"to two", relay.address)

    def test_total_loss_passes_nothing_and_counts_it(self, relay_for: Any) -> None:
        with udp_socket() as server, udp_socket() as client:
            relay = relay_for(server.getsockname(), Impairment(loss=1.0))
            for _ in range(10):
                client.sendto(b"x", relay.address)
            deadline = time.monotonic() + 60
            while relay.counters()["up"]["lost"] < 10 and time.monotonic() < deadline:
                threading.Event().wait(0.005)
            assert relay.counters()["up"] == {
                "datagrams": 10,
                "bytes": 10,
                "lost": 10,
                "overflowed": 0,
                "duplicated": 0,
                "held_back": 0,
            }
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(100)

    def test_a_closed_server_port_is_silence_and_not_the_end(self, relay_for: Any) -> None:
        with udp_socket() as server, udp_socket() as client:
            address = server.getsockname()
            relay = relay_for(address, Impairment())
            server.close()
            client.sendto(b"lost", relay.address)
            deadline = time.monotonic() + 60
            while not relay.counters()["refused"] and time.monotonic() < deadline:
                client.sendto(b"lost", relay.address)
                threading.Event().wait(0.005)
            assert relay.counters()["refused"]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reborn:
                reborn.bind(address)
                reborn.settimeout(60)
                client.sendto(b"found", relay.address)
                while (received := reborn.recv(100)) == b"lost":  # one of them may come late
                    pass
                assert received == b"found"

    def test_captures_show_what_arrived_with_its_fate(self, relay_for: Any, tmp_path: Path) -> None:
        syn = bytes.fromhex("4100000100000002000000030000000400050000")
        pcap, trace = tmp_path / "road.pcap", tmp_path / "road.txt"
        with udp_socket() as server, udp_socket() as client:
            relay = relay_for(server.getsockname(), Impairment(duplicate=1.0), pcap=pcap, trace=trace)
            client.sendto(syn, relay.address)
            assert [server.recv(100) for _ in range(2)] == [syn, syn]
            client_address, relay_address = client.getsockname(), relay.address
            relay.close_captures()
        assert list(read_pcap(pcap)) == [(client_address, relay_address, syn)]
        assert (
            trace.read_text(encoding="utf-8").split(maxsplit=1)[1]
            == "-> SYN   id=1 seq=5 ack=0 wnd=4 t=2 d=3 len=0  TWICE\n"
        )

    def test_as_a_process_it_ends_with_its_standard_input(self) -> None:
        road = Impairment(loss=0.25, duplicate=0.5, reorder=0.125, reorder_us=1, delay_us=2000, jitter_us=3000)
        with Children() as children:
            script = [sys.executable, "-m", "compat.peers.relay", "--server=127.0.0.1:9", *arguments_for(road)]
            child = children.start("relay", script)
            deadline = time.monotonic() + 100
            assert child.expect("port", deadline=deadline) > 0
            child.finish()
            assert child.expect("relay", deadline=deadline)["clients"] == 0
            assert child.wait(deadline=deadline) == 0


class TestCapture:
    def test_addresses_and_payload_survive_a_pcap(self, tmp_path: Path) -> None:
        written = [
            (("127.0.0.1", 1), ("10.1.2.3", 65535), b""),
            (("::1", 7000), ("2001:db8::2", 1), bytes(range(256))),
        ]
        writer = PcapWriter(tmp_path / "x.pcap")
        for number, (source, target, payload) in enumerate(written):
            writer.write(1_500_000 * number, source, target, payload)
        writer.close()
        assert list(read_pcap(tmp_path / "x.pcap")) == written

    def test_sack_bits_start_two_after_the_ack_and_wrap(self) -> None:
        assert sacked(10, b"\x01\x80") == [12, 27]
        assert sacked(65534, b"\x03") == [0, 1]

    @pytest.mark.parametrize(
        ("datagram", "text"),
        [
            ("2101000100000002000000030000000400050006" + "000405000000" + "ff", "sack4=8,10 len=1"),
            ("2102000100000002000000030000000400050006" + "00020102", "ext2=0102 len=0"),
            ("2101000100000002000000030000000400050006" + "000905", "broken extension chain"),
            ("2001000100000002000000030000000400050006", "not uTP"),
            ("21", "not uTP"),
        ],
    )
    def test_describe_reads_extensions_and_says_what_is_no_packet(self, datagram: Any, text: Any) -> None:
        assert text in describe(bytes.fromhex(datagram))


class TestChildren:
    def test_none_outlives_the_block_whatever_it_does(self) -> None:
        with Children() as children:
            deaf = children.start("deaf", [sys.executable, "-c", "import time; print('{\"up\": 1}'); time.sleep(600)"])
            deaf.expect("up", deadline=time.monotonic() + 100)
            with pytest.raises(ChildFailed, match="deaf: no 'report' in time"):
                deaf.expect("report", deadline=time.monotonic())
            deaf.process.kill()
        assert deaf.process.returncode is not None

    def test_an_early_end_is_reported_with_the_last_lines(self) -> None:
        with Children() as children:
            child = children.start("short", [sys.executable, "-c", "raise SystemExit('no such road')"])
            with pytest.raises(ChildFailed, match=r"short: ended \(1\) without 'port' \(no such road\)"):
                child.expect("port", deadline=time.monotonic() + 100)

    def test_what_a_child_wrote_is_reported_with_the_failure(self) -> None:
        script = "import sys, time; sys.stderr.write('bridge lost\\n'); print('{}', flush=True); time.sleep(600)"
        with pytest.raises(CaseFailed) as caught, Children() as children:
            child = children.start("side", [sys.executable, "-c", script])
            while not child.last_words():
                threading.Event().wait(0.01)
            raise CaseFailed("the files differ")
        assert caught.value.written == "; side wrote: bridge lost"


@pytest.mark.parametrize("kind", ["upload", "download", "echo", "half_close", "half_close_reverse", "idle", "abort"])
def test_conversations_over_tcp(kind: Any) -> None:
    """The conversations themselves, where the transport is above suspicion."""
    size = 2_500_001  # neither a whole number of blocks nor of chunks
    header = {"case": kind, "bytes": size, "seed": 3, "idle_seconds": 0, "aborter": "acceptor"}
    settings = json.dumps({"module": "socket"})
    script = [sys.executable, "-m", "compat.peers.stream"]
    deadline = time.monotonic() + 150
    with Children() as children:
        acceptor = children.start("acceptor", [*script, "listen", settings])
        port = str(acceptor.expect("port", deadline=deadline))
        initiator = children.start("initiator", [*script, "connect", "127.0.0.1", port, json.dumps(header), settings])
        ours, theirs = (child.expect("report", deadline=deadline) for child in (initiator, acceptor))
        if kind == "abort":
            assert theirs["error"] is None
            assert ours["error"].startswith("ConnectionResetError")
            return
        assert (ours["error"], theirs["error"]) == (None, None)
        assert (ours["eof"], theirs["eof"]) == (True, True)
        libutp.check_same_bytes({"initiator": ours, "acceptor": theirs})
        assert [child.wait(deadline=deadline) for child in (initiator, acceptor)] == [0, 0]
        times = {"upload": 1, "download": 1, "idle": 4}.get(kind, 2)
        assert ours["sent"]["bytes"] + theirs["sent"]["bytes"] == times * size


def test_different_bytes_are_seen() -> None:
    report = {"sent": {"bytes": 1, "sha256": "a"}, "received": {"bytes": 0, "sha256": ""}}
    other = {"sent": {"bytes": 0, "sha256": ""}, "received": {"bytes": 1, "sha256": "b"}}
    with pytest.raises(CaseFailed, match="initiator sent"):
        libutp.check_same_bytes({"initiator": report, "acceptor": other})


def test_seeded_blocks_differ_by_number_and_seed() -> None:
    first = list(seeded_blocks(2_500_000, seed=1))
    assert sum(map(len, first)) == 2_500_000
    assert first[0][:8] != first[1][:8]
    assert first[0] != next(seeded_blocks(1 << 20, seed=2))


class TestBittorrent:
    @pytest.fixture
    def shared(self, tmp_path: Path) -> tuple[Path, Metainfo]:
        path = tmp_path / "file.bin"
        path.write_bytes(b"".join(seeded_blocks(700_001, seed=4)))
        return path, Metainfo.of_file(path, piece_length=64 << 10)

    @pytest.mark.parametrize("value", [0, -5, b"", b"x" * 300, [], [1, [b"a"]], {b"a": {b"b": [1]}, b"c": 2}])
    def test_bencode_round_trip(self, value: Any) -> None:
        assert bdecode(bencode(value)) == (value, len(bencode(value)))

    @pytest.mark.parametrize("data", [b"", b"i5", b"9:short", b"l", b"x"])
    def test_what_is_not_bencoded_is_an_error(self, data: Any) -> None:
        with pytest.raises(ValueError):
            bdecode(data)

    def test_torrent_file_round_trip(self, shared: Any, tmp_path: Path) -> None:
        _, meta = shared
        (tmp_path / "x.torrent").write_bytes(meta.torrent())
        assert Metainfo.load(tmp_path / "x.torrent") == meta
        assert sum(size for _, _, size in meta.blocks()) == meta.length

    def exchange(self, path: Path, meta: Metainfo, out: Path) -> int:
        near, far = socket.socketpair()
        sent: list[int] = []

        def seed() -> None:
            with far, contextlib.suppress(OSError):  # a fetcher that is displeased leaves at once
                sent.append(bittorrent.serve(Wire(far, meta.info_hash, we_dialled=False), meta, path))

        thread = threading.Thread(target=seed, name="seed under test")
        thread.start()
        try:
            with near:
                near.settimeout(60)
                bittorrent.fetch(Wire(near, meta.info_hash, we_dialled=True), meta, out)
        finally:
            thread.join(60)
        return sent[0]

    def test_every_piece_crosses(self, shared: Any, tmp_path: Path) -> None:
        path, meta = shared
        assert self.exchange(path, meta, tmp_path / "out.bin") == meta.length
        assert (tmp_path / "out.bin").read_bytes() == path.read_bytes()

    def test_a_false_piece_is_not_taken(self, shared: Any, tmp_path: Path) -> None:
        path, meta = shared
        data = bytearray(path.read_bytes())
        data[200_000] ^= 1
        path.write_bytes(data)
        with pytest.raises(ProtocolError, match="piece 3 does not have its hash"):
            self.exchange(path, meta, tmp_path / "out.bin")

    def test_a_silence_ends_on_time_though_keepalives_come(self, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        _, meta = shared
        looks = itertools.chain([0.0] * 4, itertools.repeat(1.0))  # no busy machine's time: at the fifth it is over
        monkeypatch.setattr(bittorrent, "time", SimpleNamespace(monotonic=lambda: next(looks)))
        near, far = socket.socketpair()
        with near, far:
            near.settimeout(60)
            far.sendall(bittorrent.PROTOCOL + bytes(8) + meta.info_hash + bytes(20) + bytes(4) + bytes(4))
            wire = Wire(near, meta.info_hash, we_dialled=True)
            assert list(wire.receive_for(0.05)) == [(bittorrent.KEEPALIVE, b"")] * 2
            far.sendall(bytes(4) + struct.pack(">IB", 1, bittorrent.UNCHOKE))
            assert wire.receive() == (bittorrent.UNCHOKE, b"")

    def test_another_torrents_handshake_is_refused(self, shared: Any) -> None:
        _, meta = shared
        near, far = socket.socketpair()
        with near, far:
            far.sendall(bittorrent.PROTOCOL + bytes(48))
            with pytest.raises(ProtocolError, match="not our handshake"):
                Wire(near, meta.info_hash, we_dialled=True)


@pytest.mark.parametrize("act", ["half_close", "reset", "stay"])
def test_what_is_done_to_a_seed_over_tcp(act: Any, tmp_path: Path) -> None:
    """The conversations with libtorrent, where both sides and the transport are above suspicion."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"".join(seeded_blocks(700_001, seed=4)))
    torrent = tmp_path / "x.torrent"
    torrent.write_bytes(Metainfo.of_file(path).torrent())
    script = [sys.executable, "-m", "compat.peers.bittorrent"]
    settings = {"module": "socket", "act": act, "keepalive": [10, 4, 3]}
    deadline = time.monotonic() + 150
    with Children() as children:
        arguments = [str(torrent), str(path), "listen", "127.0.0.1", '{"module": "socket"}']
        seed = children.start("seed", [*script, "serve", *arguments])
        dial = ["dial", "127.0.0.1", str(seed.expect("port", deadline=deadline)), json.dumps(settings)]
        leech = children.start("leech", [*script, "fetch", str(torrent), str(tmp_path / "out.bin"), *dial])
        leech.expect("waiting", deadline=deadline)
        if act == "stay":
            seed.kill()
        leech.tell({"go": True})
        report = leech.expect("report", deadline=deadline)
        assert report["error"] is None
        assert report["ended"] == (None if act == "reset" else "eof")
        assert report["pieces"] == (1 if act == "stay" else 3)
        if act == "reset":
            assert seed.expect("failed", deadline=deadline).startswith("ConnectionResetError")
            assert seed.expect("served", deadline=deadline) == 700_001


class TestProvision:
    @pytest.fixture(autouse=True)
    def own_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("UTPSOCKET_COMPAT_CACHE", str(tmp_path / "cache"))

    def test_built_once_and_again_for_other_pins(self, capsys: pytest.CaptureFixture[str]) -> None:
        built: list[Path] = []
        first = provision.built("peer-1", [b"a"], built.append)
        assert provision.built("peer-1", [b"a"], built.append) == first
        second = provision.built("peer-1", [b"b"], built.append)
        assert built == [first, second]
        assert first != second

    def test_a_failed_build_leaves_nothing_to_be_taken_for_a_peer(self) -> None:
        def fail(folder: Path) -> None:
            (folder / "half").touch()
            raise provision.Unavailable("no network")

        with pytest.raises(provision.Unavailable, match="no network"):
            provision.built("peer-1", [], fail)
        done: list[Path] = []
        folder = provision.built("peer-1", [], done.append)
        assert done == [folder]
        assert not (folder / "half").exists()

    @pytest.mark.parametrize("failures", [1, 2])
    def test_what_failed_once_is_tried_once_more(self, monkeypatch: pytest.MonkeyPatch, failures: Any) -> None:
        monkeypatch.setattr(provision, "AGAIN_SECONDS", 0)
        tried = []

        def build(folder: Path) -> None:
            tried.append(folder)
            if len(tried) <= failures:
                raise provision.InstallFailed("the index does not answer")

        if failures == 1:
            assert provision.built("peer-1", [], build).exists()
        else:
            with pytest.raises(provision.InstallFailed, match="does not answer"):
                provision.built("peer-1", [], build)
        assert len(tried) == 2


class TestCommand:
    @pytest.mark.parametrize(("text", "size"), [("10M", 10_000_000), ("1Mi", 1 << 20), ("64kB", 64_000), ("7", 7)])
    def test_sizes(self, text: Any, size: Any) -> None:
        assert command.parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "M", "-1M", "10X", "0"])
    def test_what_is_no_size(self, text: Any) -> None:
        with pytest.raises(Exception, match="not a size"):
            command.parse_size(text)

    def test_unknown_peer_is_wrong_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["nobody"]) == 2
        assert "no such peer: nobody" in capsys.readouterr().err

    def test_a_peer_that_cannot_be_set_up_is_a_skip_with_its_cause_and_no_success(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def unavailable() -> str:
            raise provision.Unavailable("node is not installed")

        monkeypatch.setattr(libutp, "version", unavailable)
        assert command.main(["utp-native", "--quick", "--only", "upload 10 MB", "--json"]) == 1
        printed = capsys.readouterr()
        rows = json.loads(printed.out)["peers"]
        assert {row["role"] for row in rows} == {"initiator", "acceptor"}
        assert {row["status"] for row in rows} == {"skip"}
        assert {row["cause"] for row in rows} == {"cannot be set up: node is not installed"}
        assert set(rows[0]) == {"name", "version", "case", "role", "status", "bytes", "seconds", "cause"}
        assert f"{len(rows)} skipped" in printed.err

    def test_a_peer_whose_installation_fails_has_failed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fails() -> str:
            raise provision.InstallFailed("npm ci failed: no such registry")

        monkeypatch.setattr(libutp, "version", fails)
        assert command.main(["utp-native", "--quick", "--only", "upload 10 MB", "--json"]) == 1
        rows = json.loads(capsys.readouterr().out)["peers"]
        assert {row["status"] for row in rows} == {"fail"}
        assert {row["cause"] for row in rows} == {"cannot be set up: npm ci failed: no such registry"}

    def test_a_command_that_fails_is_a_failed_installation(self) -> None:
        with pytest.raises(provision.InstallFailed, match="false failed: 1"):
            provision.run_quietly(["false"], "false")
        with pytest.raises(provision.InstallFailed, match="nowhere: "):
            provision.run_quietly(["/nowhere/at/all"], "nowhere")

    def test_a_run_prints_one_object_and_says_by_its_status_whether_all_passed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        results = {"initiator": None, "acceptor": "the files differ"}

        def run(case: Case, circumstances: Circumstances, deadline: float) -> float:
            if results[case.role]:
                raise CaseFailed(results[case.role])
            return 0.5

        cases = [Case("utp-native", "chat", role, 7, run=run, waits=True) for role in results]
        monkeypatch.setattr(libutp, "version", lambda: "1.0")
        monkeypatch.setattr(libutp, "cases", lambda *, quick, size_bytes: cases)
        assert command.main(["utp-native", "--json"]) == 1
        passed, failed = json.loads(capsys.readouterr().out)["peers"]
        assert list(passed) == ["name", "version", "case", "role", "status", "bytes", "seconds", "cause"]
        assert list(passed.values()) == ["utp-native", "1.0", "chat", "initiator", "pass", 7, 0.5, None]
        assert (failed["role"], failed["status"], failed["cause"]) == ("acceptor", "fail", "the files differ")
        assert command.main(["utp-native", "--json", "--only", "initiator"]) == 0
        assert len(json.loads(capsys.readouterr().out)["peers"]) == 1

    def test_what_a_peer_has_no_words_for_is_listed_with_its_reason(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["libtorrent", "--list"]) == 0
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(swarm.UNSAID) >= 3
        for what, why in swarm.UNSAID.items():
            assert f"{what}: {why}" in printed.err

    def test_libtorrent_seeds_and_leeches_dial_and_are_dialled(self) -> None:
        cases = swarm.cases(quick=False, size_bytes=None)
        for what in ("fetch from a seed", "serve a leech"):
            for size in ("1 MB", "50 MB"):
                assert {case.role for case in cases if case.title == f"{what} {size}"} == {"initiator", "acceptor"}

    def test_a_failed_case_is_a_row_with_its_cause(self) -> None:
        def fail(case: Case, circumstances: Circumstances, deadline: float) -> float:
            raise CaseFailed("the files differ")

        row = run_case(Case("peer", "title", "acceptor", 5, run=fail), "1.0", Circumstances())
        assert row == Row("peer", "1.0", "title", "acceptor", "fail", 5, row.seconds, "the files differ")

    def test_every_case_has_its_own_name(self) -> None:
        for peer in command.PEERS.values():
            for quick in (False, True):
                names = [case.slug for case in peer.cases(quick=quick, size_bytes=None)]
                assert len(names) == len(set(names))
