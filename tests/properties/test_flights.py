"""Flights against a dict with an entry per packet."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from utpsocket.protocol.flights import Acknowledged, Flight, Flights, FlightState

FIRST = 65_530


@dataclass
class Entry:
    size: int
    offset: int
    sent_us: int
    sends: int = 1
    state: FlightState = FlightState.IN_FLIGHT


def numbers(flights: list[Flight]) -> list[int]:
    return [seq for flight in flights for seq in range(flight.seq, flight.end_seq)]


def expand(flights: Flights) -> dict[int, Entry]:
    entries = {}
    for flight in flights.queue:
        for index in range(flight.count):
            size = flight.last_payload_bytes if index == flight.count - 1 else flight.payload_bytes
            entries[flight.seq + index] = Entry(
                size, flight.offset + index * flight.payload_bytes, flight.sent_us, flight.sends, flight.state
            )
    return entries


@given(st.data())
def test_flights_are_a_dict_per_packet(data: st.DataObject) -> None:
    flights, model = Flights(FIRST), dict[int, Entry]()
    una = following = FIRST
    offset = now = 0
    for _ in range(data.draw(st.integers(1, 25))):
        now += 10
        step = data.draw(
            st.sampled_from(
                [
                    "add",
                    "add",
                    "ack",
                    "sack",
                    "sack",
                    "lose",
                    "overdue",
                    "overdue",
                    "resend",
                    "resend",
                    "tail",
                    "renege",
                ]
            )
        )
        if step == "add":
            count = data.draw(st.integers(1, 9))
            last = data.draw(st.integers(1, 10))
            flight = Flight(following, count, 10, last, offset, now)
            flight.is_small = last < 10
            flights.add(flight)
            for index in range(count):
                size = last if index == count - 1 else 10
                model[following + index] = Entry(size, offset + index * 10, now)
            offset += flight.total_bytes
            following += count
        elif step == "ack":
            to = data.draw(st.integers(una, following))
            result = Acknowledged()
            flights.acknowledge(to, result)
            gone = [model.pop(seq) for seq in range(una, to)]
            news = [entry for entry in gone if entry.state is not FlightState.SACKED]
            assert result.packets == len(news)
            assert result.total_bytes == sum(entry.size for entry in news)
            assert result.sent_us == max((entry.sent_us for entry in news), default=-1)
            una = to
        elif step == "sack":
            bits = data.draw(st.sets(st.integers(una + 1, following + 3), max_size=12))
            result = Acknowledged()
            flights.sack(una + 1, sum(1 << (seq - una - 1) for seq in bits), result)
            fresh = [seq for seq in bits if seq in model and model[seq].state is not FlightState.SACKED]
            assert result.packets == len(fresh)
            assert result.total_bytes == sum(model[seq].size for seq in fresh)
            for seq in fresh:
                model[seq].state = FlightState.SACKED
        elif step == "lose":
            before = data.draw(st.integers(0, now))
            flown = {seq: entry for seq, entry in model.items() if entry.state is FlightState.IN_FLIGHT}
            expected = [seq for seq, entry in flown.items() if entry.sent_us <= before]
            lost, next_at = flights.lose(lambda flight: flight.sent_us + now - before, now=now)  # noqa: B023
            assert numbers(lost) == expected
            later = [entry.sent_us for entry in flown.values() if entry.sent_us > before]
            assert next_at == (min(later) + now - before if later else None)
            for seq in expected:
                model[seq].state = FlightState.LOST
        elif step == "overdue":
            # As Recovery.lost_at(): what three sacked ones are above, or what left so long before the newest arrival.
            newest = max(
                ((entry.sent_us, seq) for seq, entry in model.items() if entry.state is FlightState.SACKED),
                default=(-1, -1),
            )
            patience, counts = data.draw(st.sampled_from([0, 10, 30])), data.draw(st.booleans())
            said = data.draw(st.integers(una, following + 1))

            def lost_at(sent_us: int, last_seq: int, sends: int, above: int) -> int | None:
                if counts and sends == 1 and above >= 3:  # noqa: B023
                    return 0
                return None if (sent_us, last_seq) >= newest else sent_us + patience  # noqa: B023

            sacked = [seq for seq, entry in model.items() if entry.state is FlightState.SACKED]
            times = {
                seq: lost_at(entry.sent_us, seq, entry.sends, sum(1 for other in sacked if other > seq))
                for seq, entry in model.items()
                if entry.state is FlightState.IN_FLIGHT and seq <= said
            }
            expected = [seq for seq, at in times.items() if at is not None and at <= now]
            lost, next_at = flights.lose_overdue(
                lambda flight, last_seq, above: lost_at(flight.sent_us, last_seq, flight.sends, above), said, now=now
            )
            assert sorted(numbers(lost)) == expected
            assert next_at == min((at for at in times.values() if at is not None and at > now), default=None)
            for seq in expected:
                model[seq].state = FlightState.LOST
        elif step == "resend":
            flight_or_none = flights.first_lost()
            lost_seqs = [seq for seq in sorted(model) if model[seq].state is FlightState.LOST]
            assert (flight_or_none.seq if flight_or_none else None) == (lost_seqs[0] if lost_seqs else None)
            if flight_or_none is not None:
                count = data.draw(st.integers(1, flight_or_none.count))
                sent = flights.resent(flight_or_none, count, now=now)
                assert (sent.seq, sent.count) == (lost_seqs[0], count)
                for seq in range(sent.seq, sent.end_seq):
                    model[seq].state, model[seq].sent_us = FlightState.IN_FLIGHT, now
                    model[seq].sends += 1
        elif step == "tail":
            tail = flights.last_in_flight()
            is_in_flight = bool(model) and model[following - 1].state is FlightState.IN_FLIGHT
            assert (tail is not None) == is_in_flight
            if tail is not None:
                assert (tail.seq, tail.count, tail.total_bytes) == (following - 1, 1, model[following - 1].size)
        else:
            flights.forget_sacks()
            for entry in model.values():
                if entry.state is FlightState.SACKED:
                    entry.state = FlightState.IN_FLIGHT
        flights._check()
        assert expand(flights) == model
