"""`python3 -m tests.machines [NAME ...]`: a part of the suite on machines that are unlike this one.

    python3 -m tests.machines               every machine, each with its own part of the suite
    python3 -m tests.machines --list        what there is
    python3 -m tests.machines no-ipv6 -- -x tests/sockets/test_connect.py
                                            one machine, with arguments for pytest in place of its part of the suite

A machine is a changed surrounding of one pytest process: another /etc/hosts in a mount namespace, a network namespace
without IPv6, another user, fewer file descriptors. All of it belongs to that process and ends with it. What this
computer does not permit (namespaces and another user need root) is skipped with the reason.

Every test passes on every machine or is skipped because the machine lacks what it tests: `Machine.lacks` says which
reasons are accepted there. Only the standard library is used here, as in `python3 -m tests`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import pwd
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION_PYTHON = "/usr/bin/python3"
ORDINARY_USER = "nobody"
FEW_FDS = 256
LOGIN_FDS = 1_024  # what most systems allow who logs in
NO_IPV6 = "no IPv6"  # how the reason of a skipped test begins that needs IPv6 (tests/requirements.py)

NEEDS_ROOT = "needs root"
NEEDS_FDS = r"needs \d+ file descriptors"

# Reasons for skipping a test that have nothing to do with the machine: what this interpreter or the index lacks.
LACKING_ANYWHERE = (
    r"could not import |no (gevent|eventlet|openssl|pip)\b|needs (64-bit|os\.|the )|not in this |this interpreter |"
    r"\S+ is of 3\.|libtorrent cannot be set up|needs the (pure|compiled) build"
)


class Skip(Exception):
    """This machine cannot be had here; the text says why."""


@dataclass
class Surrounding:
    """What one pytest process is started with."""

    python: str = sys.executable
    root: Path = ROOT
    prefix: list[str] = field(default_factory=list)  # a command that runs the rest of its arguments
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    before_exec: Callable[[], None] | None = None  # in the child, between fork and exec
    user: pwd.struct_passwd | None = None
    arguments: list[str] = field(default_factory=list)  # for pytest


@dataclass(frozen=True)
class Machine:
    """One kind of computer: how to make it of this one, and the part of the suite on which that may have an effect."""

    what: str
    part: Sequence[str]
    make: Callable[[argparse.Namespace, contextlib.ExitStack], Surrounding]
    lacks: str | None = None  # regular expression: the reasons for which tests may be skipped here and not elsewhere


# -- the machines -----------------------------------------------------------------------------------------------


def another_hosts_file(text: str) -> Callable[[argparse.Namespace, contextlib.ExitStack], Surrounding]:
    def make(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
        needs_namespace("--mount")
        needs_program("mount")
        hosts = Path(cleanup.enter_context(tempfile.TemporaryDirectory()), "hosts")
        hosts.write_text(text, encoding="utf-8")
        hosts.chmod(0o644)
        hosts.parent.chmod(0o755)
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return Surrounding(prefix=["unshare", "--mount", "sh", "-c", script, str(hosts)])

    return make


def no_ipv6(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    needs_namespace("--net")
    needs_program("ip", "sysctl")
    setting = "net.ipv6.conf.all.disable_ipv6=1"
    script = f'ip link set lo up && {{ sysctl -q -w {setting} || ! test -e /proc/sys/net/ipv6; }} && exec "$0" "$@"'
    return Surrounding(prefix=["unshare", "--net", "sh", "-c", script])


def no_ipv6_sockets(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    if platform.machine() not in SOCKET_CALL or struct.calcsize("P") != 8:
        raise Skip(f"the number of the system call socket() is not known for {platform.machine()}")
    return Surrounding(before_exec=refuse_ipv6_sockets)


def ordinary_user(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    """The tree is copied to where that user may write, and the copy makes a test environment of its own."""
    needs_root()
    user = pwd.getpwnam(ORDINARY_USER)
    home = Path(tempfile.mkdtemp(prefix="an ordinary user's home "))
    cleanup.callback(shutil.rmtree, home, ignore_errors=True)
    root = home / "the copy"
    copy_of_tree(root)
    (home / "tmp").mkdir()
    for path in [home, *home.rglob("*")]:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    python = next((python for python in (sys.executable, DISTRIBUTION_PYTHON) if may_run(user, python)), None)
    if python is None:
        raise Skip(f"{ORDINARY_USER} may run neither {sys.executable} nor {DISTRIBUTION_PYTHON}")
    environment = {**os.environ, "HOME": str(home), "USER": ORDINARY_USER, "LOGNAME": ORDINARY_USER}
    environment["TMPDIR"] = str(home / "tmp")
    for name in [name for name in environment if name.startswith("XDG_")]:
        del environment[name]
    return Surrounding(python, root, environment=environment, user=user, before_exec=lambda: allow_fds(LOGIN_FDS))


def distribution_python(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    if not os.path.exists(DISTRIBUTION_PYTHON):
        raise Skip(f"there is no {DISTRIBUTION_PYTHON}")
    if subprocess.run([DISTRIBUTION_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 10))"]).returncode:
        raise Skip(f"{DISTRIBUTION_PYTHON} is older than 3.10")
    if os.path.realpath(DISTRIBUTION_PYTHON) == os.path.realpath(sys.executable):
        raise Skip(f"{sys.executable} is that interpreter already: every run is on this machine")
    return Surrounding(python=DISTRIBUTION_PYTHON)


def few_fds(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    return Surrounding(before_exec=lambda: allow_fds(FEW_FDS))


def c_locale(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    """PYTHONUTF8=0 too: otherwise the interpreter takes UTF-8 for its encoding just because the locale is C."""
    kept = {
        name: value for name, value in os.environ.items() if not re.match(r"LC_|LANG|PYTHON(IOENCODING|UTF8)", name)
    }
    return Surrounding(environment={**kept, "LC_ALL": "C", "PYTHONUTF8": "0"})


def proxy(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    """At a port where nothing listens, so that what connects there fails."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return Surrounding(environment={**kept, **dict.fromkeys(names, "http://127.0.0.1:1")})


def one_processor(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    return Surrounding(before_exec=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))


def random_order(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> Surrounding:
    print(f"    again in this order: python3 -m tests.machines random-order --seed {options.seed}", flush=True)
    arguments = ["-p", "randomly", "-p", "randomly", f"--randomly-seed={options.seed}", "--randomly-dont-reset-seed"]
    return Surrounding(arguments=arguments)


def in_sockets(*names: str) -> list[str]:
    return [f"tests/sockets/test_{name}.py" for name in names]


COMMANDS = ["tests/test_cli.py", "tests/test_cli_perf.py", "tests/test_run.py", "tests/test_startup.py"]
NAMES = [*in_sockets("connect", "monkey_rules", "asyncio", "stdlib_programs"), *COMMANDS, "tests/test_examples.py"]
FAMILIES = [
    "tests/engine/test_syscalls.py",
    "tests/engine/test_udp.py",
    *in_sockets("asyncio", "bad_arguments", "connect", "identity", "monkey_fallback", "options", "ports", "uvloop"),
    "tests/test_examples.py",
    "tests/test_cli.py",
]
USER = [
    *in_sockets("connect", "forking", "identity", "namespace", "only_utp", "ports", "processes", "tls"),
    "tests/engine/test_path_mtu.py",
    "tests/engine/test_process.py",
    "tests/test_examples.py",
    "tests/test_machines.py",
    "tests/test_runner.py",
    *COMMANDS,
]
INTERPRETER = [
    *in_sockets("asyncio", "bad_arguments", "identity", "makefile", "namespace", "stdlib_programs", "tls"),
    "tests/green",
    "tests/test_compat_stdlib.py",
]
ENGINE = [f"tests/engine/test_{name}.py" for name in ("process", "programs_code", "syscalls", "udp", "work_per_batch")]
FDS = [*ENGINE, *in_sockets("connect", "event_loops", "forking", "identity", "monkey_fallback", "readiness")]
TEXT = [
    *COMMANDS,
    "tests/test_examples.py",
    "tests/test_machines.py",
    "tests/test_runner.py",
    "tests/test_structure.py",
]
WEB = ["tests/green", *in_sockets("stdlib_programs"), "tests/test_run.py", "tests/test_examples.py"]
THREADS = in_sockets("blocking_modes", "closing", "connect", "forking", "readiness", "receiving", "sending")
MACHINES = {
    "hosts-ipv6-first": Machine(
        "/etc/hosts has `::1 localhost` before `127.0.0.1 localhost`",
        NAMES,
        another_hosts_file("::1 localhost ip6-localhost ip6-loopback\n127.0.0.1 localhost\n"),
    ),
    "hosts-ipv6-only": Machine(
        "localhost is ::1 and nothing else",
        NAMES,
        another_hosts_file("::1 localhost ip6-localhost ip6-loopback\n"),
    ),
    "no-ipv6": Machine("IPv6 is switched off, as in many containers", FAMILIES, no_ipv6, NO_IPV6),
    "no-ipv6-sockets": Machine("the kernel has no IPv6 at all", FAMILIES, no_ipv6_sockets, NO_IPV6),
    "ordinary-user": Machine(
        f"not root, in a path with spaces, at most {LOGIN_FDS} file descriptors",
        USER,
        ordinary_user,
        f"{NEEDS_ROOT}|{NEEDS_FDS}",
    ),
    "distribution-python": Machine(f"the interpreter is {DISTRIBUTION_PYTHON}", INTERPRETER, distribution_python),
    "few-fds": Machine(f"at most {FEW_FDS} file descriptors", FDS, few_fds, NEEDS_FDS),
    "c-locale": Machine("LC_ALL=C, and ASCII is the interpreter's encoding", TEXT, c_locale),
    "proxy": Machine("an http proxy is in the environment", WEB, proxy),
    "one-processor": Machine("one processor", THREADS, one_processor),
    "random-order": Machine("modules and tests in a random order (--seed)", ["tests/sockets", *ENGINE], random_order),
}


# -- what they are made with ------------------------------------------------------------------------------------


def needs_root() -> None:
    if os.geteuid() != 0:
        raise Skip("needs root")


def needs_program(*names: str) -> None:
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise Skip(f"needs the program {', '.join(missing)}")


def needs_namespace(kind: str) -> None:
    needs_root()
    needs_program("unshare")
    tried = subprocess.run(["unshare", kind, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:  # root in a container that may do little
        raise Skip(tried.stderr.strip())


def may_run(user: pwd.struct_passwd, python: str) -> bool:
    try:
        ran = subprocess.run([python, "-c", ""], user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/")
    except OSError:
        return False
    return ran.returncode == 0


def allow_fds(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def is_login() -> bool:
    """Whether no more file descriptors are allowed here than on a machine with the usual limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= LOGIN_FDS


def files_of_tree(root: Path) -> list[str]:
    """What git knows and what is new, without what is ignored; everything but caches where there is no git."""
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
        names = [name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not names:  # no git, or a copy in a folder that git ignores
        left_out = re.compile(r"\.git|\.cache|\.venv|__pycache__|\..*_cache|build")
        paths = [path.relative_to(root) for path in root.rglob("*") if not path.is_dir()]
        names = [path.as_posix() for path in paths if not any(map(left_out.fullmatch, path.parts))]
    return sorted(name for name in names if (root / name).is_file())


def copy_of_tree(target: Path) -> None:
    for name in files_of_tree(ROOT):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


SOCKET_CALL = {"x86_64": 41, "aarch64": 198}  # the number of socket() by architecture


def refuse_ipv6_sockets() -> None:
    """From here on socket(AF_INET6, ...) fails with EAFNOSUPPORT in this process and all that it starts.

    A seccomp filter: four-byte words of struct seccomp_data are compared (0: the call's number, 16: its first
    argument), and the last word of what it returns is the errno. Sources: seccomp(2), linux/filter.h.
    """
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    refuse, allow = 0x00050000 | 97, 0x7FFF0000  # SECCOMP_RET_ERRNO | EAFNOSUPPORT, SECCOMP_RET_ALLOW
    rules = [
        (load, 0, 0, 0),
        (equal, 0, 3, SOCKET_CALL[platform.machine()]),
        (load, 0, 0, 16),
        (equal, 0, 1, 10),  # AF_INET6
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    for call in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, filter_mode, program, 0, 0)):
        if libc.prctl(*(ctypes.c_ulong(part) if isinstance(part, int) else part for part in call)):
            code_of_error = ctypes.get_errno()
            raise OSError(code_of_error, os.strerror(code_of_error))


# -- running them -----------------------------------------------------------------------------------------------


def run(machine: Machine, options: argparse.Namespace) -> tuple[str, list[str]]:
    """-> pytest's last line, and what is wrong: nothing when all is well."""
    with contextlib.ExitStack() as cleanup:
        surrounding = machine.make(options, cleanup)
        prepare(surrounding)
        part = options.pytest or machine.part
        ended, output = run_pytest(surrounding, [*surrounding.arguments, *part])
    faults = [f"pytest ended with status {ended}"] if ended else []
    return last_line(output), [*faults, *unexpected_skips(output, machine)]


def prepare(surrounding: Surrounding) -> None:
    """Make the test environment, outside: inside there may be no network to install from."""
    bare = Surrounding(surrounding.python, surrounding.root, user=surrounding.user)
    if surrounding.user:
        bare.environment = surrounding.environment
    ended, output = run_pytest(bare, ["--version"], echo=False)
    if ended:
        raise RuntimeError(f"no test environment for {surrounding.python}:\n{output}")


def run_pytest(surrounding: Surrounding, arguments: Sequence[str], *, echo: bool = True) -> tuple[int, str]:
    command = [*surrounding.prefix, surrounding.python, "-m", "tests", "-q", "-p", "no:cacheprovider", *arguments]
    user = surrounding.user
    process = subprocess.Popen(
        command,
        cwd=surrounding.root,
        env=surrounding.environment,
        preexec_fn=surrounding.before_exec,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
    )
    said: list[str] = []
    reader = threading.Thread(target=read, args=(process, said, echo))
    reader.start()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        # Before the process is reaped its group's number is nobody else's. What is left in it, a test has left running.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()
    return process.returncode, "".join(said)


def read(process: subprocess.Popen[bytes], said: list[str], echo: bool) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            said.append(line.decode(errors="replace"))
            if echo:
                sys.stdout.write("    " + said[-1].encode("ascii", "backslashreplace").decode())
                sys.stdout.flush()


def last_line(output: str) -> str:
    return output.strip().rpartition("\n")[2].strip("= ")


def unexpected_skips(output: str, machine: Machine) -> Iterator[str]:
    reasons = [LACKING_ANYWHERE, machine.lacks, NEEDS_ROOT if os.geteuid() else "", NEEDS_FDS if is_login() else ""]
    allowed = re.compile("|".join(reason for reason in reasons if reason))
    for reason in re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", output, re.MULTILINE):
        if not allowed.match(reason):
            yield f"skipped for neither what this machine lacks nor one of LACKING_ANYWHERE: {reason}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.machines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a machine (default: all of them)")
    parser.add_argument("--list", action="store_true", help="say what machines there are")
    parser.add_argument("--seed", type=int, default=1, help="of random-order (default: 1)")
    own, _, rest = (list(part) for part in partition(arguments, "--"))
    options = parser.parse_args(own)
    options.pytest = rest
    unknown = [name for name in options.names if name not in MACHINES]
    if unknown:
        parser.error(f"no such machine: {', '.join(unknown)}; there are {', '.join(MACHINES)}")
    if options.list:
        for name, machine in MACHINES.items():
            print(f"{name:20} {machine.what}")
        return 0
    results = {name: run_and_tell(name, options) for name in options.names or MACHINES}
    print()
    for name, (verdict, detail) in results.items():
        print(f"{verdict:8} {name:20} {detail}")
    return int(any(verdict == "FAILED" for verdict, _ in results.values()))


def run_and_tell(name: str, options: argparse.Namespace) -> tuple[str, str]:
    """-> "ok", "skipped" or "FAILED", and why or how."""
    machine, started = MACHINES[name], time.monotonic()
    print(f"\n{name}: {machine.what}", flush=True)
    try:
        detail, faults = run(machine, options)
    except Skip as reason:
        return "skipped", str(reason)
    detail = f"{time.monotonic() - started:3.0f} s: {detail}"
    return ("FAILED", "; ".join([detail, *faults])) if faults else ("ok", detail)


def partition(arguments: Sequence[str], separator: str) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    at = list(arguments).index(separator) if separator in arguments else len(arguments)
    return arguments[:at], arguments[at : at + 1], arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
