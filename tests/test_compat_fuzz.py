"""The tool that compares random sequences of calls: what it finds, shrinks, expects and prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compat import __main__ as compat
from compat.fuzz import compare as comparing
from compat.fuzz.compare import Kind, compare, examine, shorten
from compat.fuzz.expected import EXPECTED, without_expected
from compat.fuzz.machine import run
from compat.fuzz.sequences import sequence

PAIR = [
    "a = socket.socket()",
    'a.bind(("127.0.0.1", 0))',
    "a.listen()",
    "b = socket.socket()",
    "b.connect(a.getsockname())",
    "c, _ = a.accept()",
]


def test_a_sequence_is_known_by_its_seed_and_number() -> None:
    assert sequence(3, 7) == sequence(3, 7)
    assert len({tuple(sequence(seed, number)) for seed in range(3) for number in range(3)}) == 9


def test_what_does_not_differ() -> None:
    assert (
        compare([*PAIR, 'b.send(b"x")', "c.recv(5)", "c.getpeername()", "b.close()", "c.recv(5)", "polled(c)"]) is None
    )


def test_what_differs_is_shortened_and_explained() -> None:
    noise = ["d = socket.socket()", 'c.send(b"hello")', "b.recv(100)", "e = c.dup()"]
    lines = [*PAIR, *noise, 'b.send(b"x", socket.MSG_OOB)', "d.close()"]
    found = compare(lines)
    assert found is not None
    lines, found = shorten(lines, found)
    assert lines == [PAIR[0], *PAIR[2:5], 'b.send(b"x", socket.MSG_OOB)']
    assert found.kind == Kind("send", "1", "raises OSError ENOTSUP")  # the same number as EOPNOTSUPP
    fewer = without_expected(lines, found.kind, found.line)
    assert fewer is not None and "urgent" in fewer.reason
    assert fewer.lines == lines[:-1]
    assert without_expected(PAIR, found.kind, 5) is None


def test_what_must_differ_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    urgent = [*PAIR, 'b.send(b"x", socket.MSG_OOB)', 'c.send(b"x")', "b.recv(5)"]
    monkeypatch.setattr(comparing, "sequence", lambda seed, number: urgent)
    finding = examine(1, 1)
    assert finding.difference is None
    assert finding.lines == [*PAIR, *urgent[-2:]]
    assert len(finding.reasons) == 1


def test_every_expectation_has_a_reason() -> None:
    assert all(entry.reason and entry.words for entry in EXPECTED)


@pytest.mark.parametrize("holder", ["fork", "start"])
@pytest.mark.parametrize("network", ["tcp", "utp"])
def test_threads_and_other_holders(network: str, holder: str) -> None:
    lines = [
        *PAIR,
        'meanwhile("c.recv(5)", "b.send(b\'hello\')")',
        f"h1 = {holder}()",
        "h1.do(\"b.send(b'from the child')\")",
        "c.recv(100)",
        "b.close()",
        "polled(c)",
        "h1.kill()",
        "c.recv(100)",
        "h1.do(\"b.send(b'x')\")",
    ]
    results = run(lines, network).results
    assert results[6] == ("thread", b"hello", "here", 5)
    assert results[7:14] == ["holder", 14, b"from the child", None, "OUT", "killed", b""]
    assert results[14].startswith("raises OSError EBADF")


def test_the_command_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert compat.main(["fuzz", "--runs", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sequences": 0, "differ": 0, "expected": 0, "kinds": []}


def test_a_script_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("\n".join([*PAIR, 'b.send(b"x", socket.MSG_OOB)']))
    assert compat.main(["fuzz", "--replay", str(script)]) == 1
    assert capsys.readouterr().out.rstrip().endswith("^ differ")
