"""What is published: the metadata, the source archive and the wheel that is made of it. No network is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

import utpsocket

from .requirements import requires_compiled

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 120
COMPILE_S = 1_000  # on a busy machine, where nothing is made in advance
PYTHONS = range(10, 15)
NO_COMPILER = "/nonexistent/cc"
FOR_THE_BUILD = {"utpsocket/_compile.py", "utpsocket/_native.c"}

needs_hatchling = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="needs hatchling, of the group test"
)


def build(source: Path, target: str, folder: Path, **variables: str) -> Path:
    """The archive that hatchling makes of this tree."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    environment = {**os.environ, **variables}
    environment.pop("UTPSOCKET_COMPILE", None)  # what happens without it is what is tested
    ran = subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, timeout=COMPILE_S, check=False
    )
    assert ran.returncode == 0, ran.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the source archive, the wheel that is made of what is in it where there is no compiler)."""
    folder = tmp_path_factory.mktemp("archives")
    sdist = build(ROOT, "sdist", folder / "sdist")
    with tarfile.open(sdist) as opened:
        opened.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    wheel = build(source, "wheel", folder / "wheel", CC=NO_COMPILER)
    assert wheel.name.endswith("-py3-none-any.whl")
    return sdist, wheel


@needs_hatchling
def test_the_wheel_has_the_package_its_documents_and_types_and_nothing_else(archives: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(archives[1]).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "utpsocket").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so")
    } - FOR_THE_BUILD
    assert {"utpsocket/py.typed", "utpsocket/docs/index.md", "utpsocket/docs/guide/use.md"} <= wanted
    metadata = {name for name in names if re.match(r"utpsocket-[^/]+\.dist-info/", name)}
    assert names - metadata == wanted - {"utpsocket/startup/utpsocket.pth"} | {"utpsocket.pth"}


@needs_hatchling
def test_the_source_archive_has_all_that_the_tests_need(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for wanted in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "tests/__main__.py",
        "compat/__main__.py",
        "examples/echo.py",
        *FOR_THE_BUILD,
    ):
        assert wanted in names
    assert not any(name.startswith((".cache", ".git/", ".ci")) for name in names)


@needs_hatchling
def test_what_is_installed_of_the_wheel_works_and_has_the_version(archives: tuple[Path, Path], tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*install, "--target", str(tmp_path), str(archives[1])], check=True, timeout=WAIT_S)
    program = (
        "import importlib.metadata, utpsocket\n"
        "with utpsocket.create_server(('127.0.0.1', 0)) as server:\n"
        "    utpsocket.create_connection(server.getsockname()).close()\n"
        "print(utpsocket.__file__, utpsocket.__version__, importlib.metadata.version('utpsocket'))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ran.stderr == ""
    where, *versions = ran.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert versions == [utpsocket.__version__] * 2


@needs_hatchling
def test_the_metadata_name_what_it_runs_on(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(name).decode()
    head = text.partition("\n\n")[0].splitlines()
    fields = [line.partition(": ")[::2] for line in head]
    assert ("Version", utpsocket.__version__) in fields
    assert ("Requires-Python", f">=3.{PYTHONS[0]}") in fields
    classifiers = {value for key, value in fields if key == "Classifier"}
    minors = {each.rpartition(".")[2] for each in classifiers if re.fullmatch(r"Programming .* :: 3\.\d+", each)}
    assert minors == {str(minor) for minor in PYTHONS}
    assert "Programming Language :: Python :: Implementation :: CPython" in classifiers
    assert "Operating System :: POSIX :: Linux" in classifiers
    assert "Typing :: Typed" in classifiers
    extras = {value for key, value in fields if key == "Provides-Extra"}
    assert extras == {"cli", "eventlet", "gevent", "uvloop"}, "the project's own tools are dependency groups"
    needed = [value for key, value in fields if key == "Requires-Dist"]
    assert all("extra == " in each for each in needed), "nothing is needed beside the standard library"
    assert [value for key, value in fields if key == "Project-URL"]


def test_the_version_stands_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'dynamic = ["version"]' in text
    assert not re.search(r"^version\s*=", text, re.MULTILINE)


@needs_hatchling
@pytest.mark.parametrize(
    ("value", "compiles", "may_fail"),
    [(None, True, True), ("auto", True, True), ("1", True, False), ("0", False, True), ("off", False, True)],
)
def test_a_wheel_is_compiled_unless_that_fails_or_is_not_wanted(
    value: str | None, compiles: bool, may_fail: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utpsocket import _compile

    def fail(*_: object) -> list[Path]:
        raise SystemExit("mypyc cannot go on")

    monkeypatch.delenv("UTPSOCKET_COMPILE", raising=False)
    if value is not None:
        monkeypatch.setenv("UTPSOCKET_COMPILE", value)
    monkeypatch.setattr(_compile, "_has_compiler", lambda: True)
    hook = _compile.CompileHook(str(ROOT), {}, cast("Any", None), cast("Any", None), "", "wheel")
    assert hook.dependencies() == (_compile.REQUIRED if compiles else [])
    monkeypatch.setattr(_compile, "compile_into", lambda target, work: [target / "utpsocket" / "_native.so"])
    for version, has_it in (("standard", compiles), ("editable", False)):
        data: dict[str, Any] = {"force_include": {}, "pure_python": True}
        hook.initialize(version, data)
        assert [*data["force_include"].values()] == (["utpsocket/_native.so"] if has_it else [])
        assert data["pure_python"] is not has_it
        hook.finalize(version, data, "")
    monkeypatch.setattr(_compile, "compile_into", fail)
    with nullcontext() if may_fail else pytest.raises(SystemExit):
        hook.initialize("standard", data)
    assert data == {"force_include": {}, "pure_python": True}
    hook.finalize("standard", data, "")
    monkeypatch.setattr(_compile, "_has_compiler", lambda: False)
    assert hook.dependencies() == ([] if may_fail else _compile.REQUIRED), "which says by itself what is missing"


@needs_hatchling
def test_what_cannot_be_read_is_no_wish_to_compile_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from utpsocket import _compile

    monkeypatch.setenv("UTPSOCKET_COMPILE", "perhaps")
    hook = _compile.CompileHook(str(ROOT), {}, cast("Any", None), cast("Any", None), "", "wheel")
    with pytest.raises(ValueError, match="UTPSOCKET_COMPILE='perhaps'"):
        hook.dependencies()


@needs_hatchling
@requires_compiled
@pytest.mark.timeout(2 * COMPILE_S)
def test_a_compiled_wheel_runs_in_a_fresh_environment(tmp_path: Path) -> None:
    """`python3 -m tests --compiled` has compiled the same source into ROOT/build."""
    wheel = build(ROOT, "wheel", tmp_path / "wheel", UTPSOCKET_COMPILE_WORK=str(ROOT / "build"))
    tag = sysconfig.get_config_var("SOABI").split("-")[1]
    assert f"-cp{tag}-cp{tag}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"utpsocket/_native{suffix}", f"utpsocket__mypyc{suffix}", f"utpsocket/engine/loop{suffix}"} <= {*names}
    assert {"utpsocket/engine/loop.py", "utpsocket.pth"} <= {*names}, "the pure build lies beside it"
    assert not {*names} & FOR_THE_BUILD
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=WAIT_S)
    python = str(home / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*install, str(wheel)], check=True, timeout=WAIT_S)
    for variables, kind in (({}, "compiled"), ({"UTPSOCKET_PURE": "1"}, "pure")):
        environment = {**os.environ, **variables}

        def said(*arguments: str, environment: dict[str, str] = environment) -> str:
            command = [python, "-m", "utpsocket", *arguments]
            ran = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
            )
            assert ran.returncode == 0, ran.stderr
            return ran.stdout

        assert f"({kind};" in said("--version")
        result = json.loads(said("demo", "--size", "8M", "--json"))
        assert (result["build"], result["sha256_ok"]) == (kind, True)
