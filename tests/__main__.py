"""`python3 -m tests [pytest arguments]`: run the tests in a virtual environment of their own.

Only the standard library is needed to start: the first run makes the environment below `.cache/tests/` and installs the
package and pyproject.toml's dependency group `test` into it; later runs find it by the hash of pyproject.toml and start
at once. A changed pyproject.toml is a new environment, and the old one is removed once no process runs in it.

    python3 -m tests                    the whole suite: about 20 minutes
    python3 -m tests --quick            a part of it that takes two minutes
    python3 -m tests --compiled         first: what follows in a compiled copy of this tree below `.cache/tests/`
    python3 -m tests -k echo            pytest's own arguments: python3 -m tests --tool pytest --help
    python3 -m tests --tool ruff check  any other tool of that environment
    python3 -m tests.machines --help    a part of the suite without IPv6, as another user, with few file descriptors ...

The first run takes half a minute longer and needs the package index (PyPI, or a mirror that pip is configured for).
Where a test needs what this machine lacks (IPv6, root, a program) it is skipped, and the last lines say why.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "tests"
# Each layer of the library once, without what takes its time: the simulations, the fuzzing, programs that are started.
QUICK = (
    "tests/protocol",
    "tests/engine/test_endpoint.py",
    "tests/engine/test_udp.py",
    "tests/sockets/test_connect.py",
    "tests/sockets/test_sending.py",
    "tests/sockets/test_receiving.py",
    "tests/sockets/test_closing.py",
    "tests/sockets/test_monkey.py",
    "tests/test_structure.py",
)
READY = "ready"  # written last into a finished environment: one that was interrupted does not have it


def main(arguments: Sequence[str]) -> int:
    if sys.version_info < (3, 10):
        return complain(f"utpsocket needs Python 3.10 or later; this is {sys.version.split()[0]}")
    if list(arguments) in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if arguments[:1] == ["--compiled"]:
        try:
            in_the_copy(arguments[1:])
        except CannotPrepare as problem:
            return complain(str(problem))
    if arguments[:1] == ["--tool"]:
        if len(arguments) < 2:
            return complain("--tool needs the name of a tool: python3 -m tests --tool ruff check")
        module, *rest = arguments[1:]
    else:
        # pytest would take it for an option of its own that is not there, and say so after the environment was made.
        quick = [*QUICK] if "--quick" in arguments else []
        module, rest = "pytest", [argument for argument in arguments if argument != "--quick"] + quick
    environment = CACHE / environment_name()
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        hold(environment)
    except CannotPrepare as problem:
        return complain(str(problem))
    remove_superseded(environment)
    become([str(environment / "bin" / "python"), "-m", module, *rest])


class CannotPrepare(Exception):
    """The environment could not be made; the text says what to do about it."""


def environment_name() -> str:
    """One environment per interpreter and content of pyproject.toml, so that two never share or overwrite one."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    return f"{interpreter_prefix()}{wanted.hexdigest()[:12]}"


def interpreter_prefix() -> str:
    """Two interpreters of one version, the distribution's and another, keep their environments both."""
    which = hashlib.sha256(f"{sys.version}\n{sys.base_exec_prefix}\n{ROOT}".encode()).hexdigest()[:6]
    return f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}-{which}-"


def hold(environment: Path) -> None:
    """Lock `environment`, made first if need be: shared among runs, exclusive while it is being made or removed."""
    # Left open and inheritable: the tool that this process becomes holds the lock until it ends.
    lock = os.open(lock_of(environment), os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(lock, True)
    fcntl.flock(lock, fcntl.LOCK_SH)
    while not (environment / READY).exists():
        # flock cannot go from shared to exclusive without letting go, so another run may have built it meanwhile.
        fcntl.flock(lock, fcntl.LOCK_UN)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (environment / READY).exists():
            try:
                build(environment)
            except BaseException:
                os.close(lock)
                raise
        fcntl.flock(lock, fcntl.LOCK_SH)


def lock_of(environment: Path) -> Path:
    return environment.with_name(environment.name + ".lock")


def build(environment: Path) -> None:
    note(f"making the test environment {environment.relative_to(ROOT)} (once per pyproject.toml) ...")
    shutil.rmtree(environment, ignore_errors=True)
    made = captured([sys.executable, "-m", "venv", str(environment)])
    if made.returncode:
        raise CannotPrepare(
            f"{sys.executable} cannot make a virtual environment:\n{indented(made.stdout)}\n"
            "It needs the standard modules venv and ensurepip, which on Debian and Ubuntu are a package of their own:\n"
            "    apt-get install python3-venv"
        )
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = captured([*install, "pip>=25.1"])  # the first that knows dependency groups
    if not installed.returncode:
        # Never compiled: an editable installation is pure, and would only fetch what compiling needs.
        installed = captured([*install, "-e", ".", "--group", "test"], UTPSOCKET_COMPILE="0")
    if installed.returncode:
        raise CannotPrepare(
            f"pip could not install the test dependencies:\n{indented(installed.stdout)}\n"
            "They come from PyPI, so the first run needs the network (or a pip configured for a mirror)."
        )
    (environment / READY).touch()


def remove_superseded(environment: Path) -> None:
    """Remove this interpreter's environments for an earlier pyproject.toml, unless a process runs in them."""
    for other in CACHE.glob(f"{interpreter_prefix()}*.lock"):
        if other == lock_of(environment):
            continue
        with open(other, "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # The lock file stays: removed, two runs could each hold "the" lock on a file of the same name.
            shutil.rmtree(other.with_suffix(""), ignore_errors=True)


def in_the_copy(arguments: Sequence[str]) -> NoReturn:
    """Run the tests in a copy of this tree that is compiled in place, with an environment of its own: whatever is run
    there, and from wherever, finds the compiled build, and this tree stays pure.
    """
    copy = CACHE / f"compiled-{interpreter_prefix()}copy"
    copy.mkdir(parents=True, exist_ok=True)
    lock = os.open(lock_of(copy), os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(lock, True)
    wanted = mirrored_files()
    stamp = copy / ".cache" / "compiled"
    content = fingerprint(wanted)
    fcntl.flock(lock, fcntl.LOCK_SH)
    while not stamp.exists() or stamp.read_text(encoding="utf-8") != content:
        fcntl.flock(lock, fcntl.LOCK_UN)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != content:
            mirror(wanted, copy)
            compile_in_place(copy)
            stamp.write_text(content, "utf-8")
        fcntl.flock(lock, fcntl.LOCK_SH)
    os.chdir(copy)
    os.execv(sys.executable, [sys.executable, "-m", "tests", *arguments])


def mirrored_files() -> list[str]:
    """What the copy has: all that git knows or would add, or without git all but caches."""
    from tests.machines import files_of_tree

    return files_of_tree(ROOT)


def fingerprint(names: Sequence[str]) -> str:
    whole = hashlib.sha256()
    for name in names:
        whole.update(f"{name}\0".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return whole.hexdigest()


def mirror(names: Sequence[str], copy: Path) -> None:
    """Make the copy's files these. What has not changed keeps its time, so that it is not compiled again."""
    for path in copy.rglob("*"):
        place = path.relative_to(copy)
        if path.is_file() and place.parts[0] not in (".cache", "build") and place.as_posix() not in names:
            path.unlink()
    for name in names:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_bytes() != (ROOT / name).read_bytes():
            shutil.copy2(ROOT / name, target, follow_symlinks=False)


def compile_in_place(copy: Path) -> None:
    note(f"compiling {copy.relative_to(ROOT)} (whenever a source file has changed; some minutes the first time) ...")
    compiler = [sys.executable, "-m", "tests", "--tool", "utpsocket._compile"]
    # Pure: what was compiled before may lack what the present source calls.
    ran = captured(compiler, copy, UTPSOCKET_PURE="1")
    if ran.returncode:
        raise CannotPrepare(f"the compiled build could not be made:\n{indented(ran.stdout[-4_000:])}")


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by `command` in the repository's root, so that signals and its status are its own."""
    os.chdir(ROOT)
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONPATH")}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), variables)


def captured(command: Sequence[str], folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def indented(text: str) -> str:
    return "\n".join("    " + line for line in text.strip().splitlines())


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def complain(text: str) -> int:
    note(f"python3 -m tests: {text}")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
