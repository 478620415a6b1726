"""A small share of what `python -m tests.fuzz --packets 10000000` does by hand."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import run_seed
from tests.fuzz.programs import run_program


@settings(max_examples=150)
@given(st.binary(max_size=600))
def test_any_program_runs(program: bytes) -> None:
    run_program(program)


def test_programs_of_chance() -> None:
    packets = seed = 0
    while packets < 50_000:
        seed += 1
        packets += run_seed(seed)
