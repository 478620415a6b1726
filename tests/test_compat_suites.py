"""The runner of libraries' own suites, tried on small ones of ours: both sides go over TCP here."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from compat.peers.provision import InstallFailed, Unavailable
from compat.stdlib import table
from compat.stdlib.alone import worst_of
from compat.stdlib.expectations import expectation
from compat.stdlib.supervisor import ModuleRun, Outcome
from compat.suites import child, command, provision
from compat.suites.expectations import EXPECTED
from compat.suites.libraries import LIBRARIES, QUICK, Library, select
from compat.suites.provision import PINS, Provided

TESTS = """
import os, socket, threading, unittest
from pathlib import Path
import pytest

def test_a_makes_sockets():
    with socket.socket(), socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

@pytest.mark.parametrize("word", ["one # two", "three (four)"])
def test_b_has_parameters(word):
    assert word

class TestC(unittest.TestCase):
    def test_fails(self):
        self.fail("on both sides")

def test_d_is_skipped():
    pytest.skip("no reason")

@pytest.mark.xfail
def test_e_fails_as_it_should():
    assert False

@pytest.fixture
def broken():
    raise OSError("no fixture")

def test_f_has_a_broken_fixture(broken):
    pass

def test_g_crashes():
    os._exit(3)

def test_h_cannot_be_reported(request):
    request.node.repr_failure = lambda *_: 1 // 0
    assert False

def test_i_comes_after():
    assert Path("tests/data.txt").read_text() == "data"
"""

KEEPS = """
import socket

def test_fails_with_an_open_socket():
    sock = socket.socket()
    assert sock is None
"""

LOADED = """
import os
from pathlib import Path

RUNS = Path(os.environ["SUITES_TEST_RUNS"])
ran = []

def test_before():
    ran.append(1)
    RUNS.write_text(RUNS.read_text() + ".")

def test_differs_under_load():
    assert not ran or RUNS.read_text() == "."  # the second run of the whole is the one over uTP
"""


GARBAGE = """
import gc

class Node:
    pass

def cycle():
    node = Node()
    node.itself = node
    return node

MADE_BY_COLLECTION = [cycle() for _ in range(3)]

def test_what_collection_made_is_not_looked_through():
    assert not any(isinstance(found, Node) for found in gc.get_objects())

def test_garbage_of_tests_is_found():
    cycle()
    assert gc.collect() > 0
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setenv("COMPAT_STDLIB_STAND_IN", "1")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "files" / "tests").mkdir(parents=True)
    (tmp_path / "files" / "tests" / "data.txt").write_text("data", encoding="utf-8")
    library = Library("mylib", "1.0", (), ("tests",))
    provided = Provided(sys.executable, tmp_path / "files")

    def write(text: str) -> None:
        (tmp_path / "files" / "tests" / "test_it.py").write_text(text, encoding="utf-8")

    def walk() -> command._Walk:
        return command._Walk(library, provided, argparse.Namespace(match=[], runs=1))

    return SimpleNamespace(library=library, provided=provided, write=write, walk=walk, folder=tmp_path)


def test_pytests_outcomes_are_recorded_and_a_crash_ends_one_test_only(suite: SimpleNamespace) -> None:
    suite.write(TESTS)
    verdict = suite.walk()
    (run,), _ = verdict._alternately((), 1)
    assert {name.removeprefix("mylib.test_it."): outcome.status for name, outcome in run.tests.items()} == {
        "test_a_makes_sockets": "pass",
        "test_b_has_parameters[one_%23_two]": "pass",
        "test_b_has_parameters[three_(four)]": "pass",
        "TestC.test_fails": "fail",
        "test_d_is_skipped": "skip",
        "test_e_fails_as_it_should": "pass",
        "test_f_has_a_broken_fixture": "error",
        "test_g_crashes": "crash",
        "test_h_cannot_be_reported": "crash",
        "test_i_comes_after": "pass",
    }
    assert run.tests["mylib.test_it.test_a_makes_sockets"].tcp_sockets == 2
    assert "no fixture" in run.tests["mylib.test_it.test_f_has_a_broken_fixture"].why
    assert "ZeroDivisionError" in run.tests["mylib.test_it.test_h_cannot_be_reported"].why
    assert run.troubles == []
    assert [path.name for path in suite.provided.files.rglob("*") if path.is_file()].count("test_it.py") == 1
    assert not list(suite.provided.files.rglob("__pycache__")), "the process works in a copy"


def test_a_suite_that_cannot_be_collected_is_not_a_difference(suite: SimpleNamespace) -> None:
    suite.write("import nothing_of_that_name")
    verdict = suite.walk().verdict()
    assert (verdict.over_tcp, verdict.unexpected) == (0, {})


def test_what_a_failure_held_is_not_left_over(suite: SimpleNamespace) -> None:
    suite.write(KEEPS)
    (run,), _ = suite.walk()._alternately((), 1)
    suite.write("def test_nothing(): pass")
    (other,), _ = suite.walk()._alternately((), 1)
    assert [outcome.status for outcome in run.tests.values()] == ["fail"]
    assert run.leftovers["fds"].get("socket", 0) == other.leftovers["fds"].get("socket", 0)


def test_what_differs_under_load_only_counts_as_it_is_alone(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = suite.folder / "runs"
    runs.write_text("", encoding="utf-8")
    monkeypatch.setattr(command, "ALONE_ROUNDS", 1)
    monkeypatch.setenv("SUITES_TEST_RUNS", str(runs))
    suite.write(LOADED)
    walk = suite.walk()
    verdict = walk.verdict()
    assert (verdict.over_tcp, verdict.same, verdict.unexpected) == (2, 2, {})
    assert list(walk.only_under_load) == ["mylib.test_it.test_differs_under_load"]
    assert walk.only_under_load["mylib.test_it.test_differs_under_load"].startswith("fail, over TCP pass")


def test_one_test_alone_does_not_import_the_modules_of_others(suite: SimpleNamespace) -> None:
    suite.write("from pathlib import Path; Path('imported').touch()")
    suite.provided.files.joinpath("tests", "test_other.py").write_text(
        "from pathlib import Path\n\ndef test_that():\n    assert not Path('imported').exists()\n", encoding="utf-8"
    )
    run = suite.walk()._run("tcp", ("mylib.test_other.test_tha[t]",))
    assert {name: outcome.status for name, outcome in run.tests.items()} == {"mylib.test_other.test_that": "pass"}


@pytest.mark.parametrize(
    ("path", "pattern", "may"),
    [
        ("test/iostream_test.py", "tornado.test.iostream_test.TestIt.test_x", True),
        ("test/web_test.py", "tornado.test.iostream_test.TestIt.test_x", False),
        ("tests/test_run.py", "aiohttp.test_run.test_it[[]1.5]", True),
        ("tests/test_run_more.py", "aiohttp.test_run.test_it[[]1.5]", False),
        ("tests/test_run_more.py", "aiohttp.test_ru*", True),
        ("tests/test_web.py", "aiohttp.test_ru*", False),
        ("tests/test_web.py", "*socket*", True),
        ("tests/conftest.txt", "aiohttp.test_run.test_it", True),
        ("tests/run/__init__.py", "aiohttp.test_run.test_it", True),
    ],
)
def test_which_files_may_hold_a_test(path: str, pattern: str, may: bool) -> None:
    assert child.may_hold(Path(path), pattern) is may


def test_garbage_collections_of_a_suite_see_no_more_than_its_tests_made(suite: SimpleNamespace) -> None:
    suite.write(GARBAGE)
    run = suite.walk()._run("tcp", ())
    assert [outcome.status for outcome in run.tests.values()] == ["pass", "pass"]


def test_what_fails_over_tcp_in_one_round_does_not_count() -> None:
    passes = Outcome("pass", 0.1, 1, 0)
    hangs = Outcome("hang", 9.0, 0, 0)
    worst = worst_of([ModuleRun("mylib", {"a": passes, "b": hangs}), ModuleRun("mylib", {"a": hangs})])
    assert {name: outcome.status for name, outcome in worst.tests.items()} == {"a": "hang", "b": "hang"}


@pytest.mark.parametrize(
    ("library", "node", "module", "name"),
    [
        ("tornado", "../x/tornado/test/w_test.py::T::test_it", "tornado.test.w_test", "tornado.test.w_test.T.test_it"),
        ("aiohttp", "tests/test_run.py::test_it[a::b/c]", "tests.test_run", "aiohttp.test_run.test_it[a::b/c]"),
        ("aiohttp", "tests/test_run.py::test_it", "test_run", "aiohttp.test_run.test_it"),
        ("urllib3", "test/a/test_b.py::T::test_it", "test.a.test_b", "urllib3.a.test_b.T.test_it"),
        ("mylib", "tests/notes.txt::notes.txt", "", "mylib.notes.txt.notes.txt"),
    ],
)  # fmt: skip
def test_ids_begin_with_the_librarys_name(library: str, node: str, module: str, name: str) -> None:
    assert child.test_name(library, node, module) == name


def test_ids_do_not_contain_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node = f"tests/test_b.py::test_path[{tmp_path}/tests/test_b.py]"
    assert child.test_name("mylib", node, "tests.test_b") == "mylib.test_b.test_path[./tests/test_b.py]"


def test_interpreters_with_a_pythonpath_of_their_own_are_patched_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "x.pth").write_text(provision.INHERITED, encoding="utf-8")
    program = f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); print(sys.path[0], sys.path[-1])"

    def ends_of_path(**named: str) -> list[str]:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=named, capture_output=True, text=True, check=True).stdout.split()

    assert ends_of_path(COMPAT_STDLIB_PATH="/inherited:/root/of/it") == ["/inherited", "/root/of/it"]
    assert "/inherited" not in ends_of_path()


APT = """#!/bin/sh
echo "$@" >> calls
case "$*" in
*indextargets*) test -e updated && echo "Debian some://archive/"; exit 0;;
*source*) grep -h . apt/sources.list > sources; echo > mylib_1.0.orig.tar.gz;;
*update*) touch updated;;
esac
"""


def test_debians_sources_come_through_lists_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt = tmp_path / "apt-get"
    apt.write_text(APT, encoding="utf-8")
    apt.chmod(0o755)
    keys = tmp_path / "keys.gpg"
    monkeypatch.setattr(provision, "DEBIAN_KEYS", keys)
    with pytest.raises(Unavailable, match="needs Debian"):
        provision._download_from_debian("python-mylib=1.0-1", tmp_path)
    keys.touch()
    provision._download_from_debian("python-mylib=1.0-1", tmp_path)
    assert (tmp_path / "sources").read_text(
        encoding="utf-8"
    ) == f"deb-src [signed-by={keys}] some://archive/ trixie main\n"
    assert (tmp_path / "mylib_1.0.orig.tar.gz").exists()
    assert not (tmp_path / "apt").exists()
    asked, updated, asked_again, own_update, source = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert (asked, updated) == (asked_again, "update -qq")
    assert f"Dir::State::Lists={tmp_path}/apt/lists" in own_update
    assert source.endswith("source --download-only --tar-only python-mylib=1.0-1")


def test_the_json_and_the_table_name_the_version(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write("def test_it(): pass")
    monkeypatch.setattr(command, "select", lambda patterns: [suite.library])
    monkeypatch.setattr(command, "provide", lambda library: suite.provided)
    results = suite.folder / "RESULTS.md"
    assert command.main(["mylib", "--json", "--table", str(results)]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = {"name", "version", "tests", "over_tcp", "same", "expected", "unexpected", "utp_connections", "seconds"}
    assert keys <= set(found["suites"][0])
    assert found["unexpected"] == []
    text = results.read_text(encoding="utf-8")
    assert "| `mylib` | 1.0 | 1 | 1 |" in text
    written = table.read(results, table.feature_version(sys.version), command.LAYOUT)
    assert written is not None
    assert written.rows["mylib"][:3] == ("1.0", 1, 1)


def test_a_part_of_a_suite_is_no_row_of_the_table(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["trio", "--match", "*socket*", "--table", str(tmp_path / "RESULTS.md")])
    assert ended.value.code == 2
    assert not list(tmp_path.iterdir())


def test_each_expected_difference_is_one_of_the_table() -> None:
    """Each difference that the table lists is one of expectations.py, and every such entry but a race is listed."""
    results = Path(command.__file__).with_name("RESULTS.md")
    listed: set[str] = set()
    for minor in range(10, 20):
        written = table.read(results, f"3.{minor}", command.LAYOUT) or table.Table()
        assert [test for test in written.expected if expectation(test, (3, minor), EXPECTED) is None] == []
        listed |= set(written.expected)
    steady = [entry for entry in EXPECTED if not entry.sometimes]
    assert [entry.tests for entry in steady if not any(entry.covers(test, (3, 11)) for test in listed)] == []


def test_a_library_that_cannot_be_had_is_said_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def provide(library: Library) -> Provided:
        raise InstallFailed("no package index")

    monkeypatch.setattr(command, "provide", provide)
    assert command.main(["tornado", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["unavailable"] == {"tornado": "no package index"}
    assert command.main(["nothing_of_that_name"]) == 2


def test_every_library_is_pinned_and_the_quick_ones_exist() -> None:
    assert [library.name for library in select(QUICK)] == list(QUICK)
    for library in LIBRARIES:
        pins = (PINS / f"{library.name}.txt").read_text(encoding="utf-8").splitlines()
        assert f"{library.name}=={library.version}" in pins


def test_every_library_has_its_row() -> None:
    """At the version that it is pinned to: what the list promises has been run."""
    written = table.read(Path(command.__file__).with_name("RESULTS.md"), "3.11", command.LAYOUT)
    assert written is not None
    assert {name: row[0] for name, row in written.rows.items()} == {each.name: each.version for each in LIBRARIES}
