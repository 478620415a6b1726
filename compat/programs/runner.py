"""One scenario played by two processes, and judged: what the client asserts, and whether uTP carried it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from compat.peers.children import REPOSITORY, Child, ChildFailed, Children, Failed
from compat.programs.provision import Environment, normal
from compat.programs.scenario import Scenario

REPORT_S: Final = 30.0  # to answer with figures
EXIT_S: Final = 60.0  # for a client that is through: the flush at exit, and threads that are being joined
# What a user may have set for other ends, and programs here would heed: emptied.
NOT_INHERITED: Final = (
    *("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)


@dataclass(frozen=True)
class Row:
    """What became of one scenario."""

    name: str
    version: str
    status: str
    utp_connections: int
    seconds: float
    cause: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)


def run_scenario(scenario: Scenario, environment: Environment, *, control: bool = False) -> Row:
    """Play it; never raises for what the program does. As a control, over TCP: a test of the scenario itself."""
    version = version_of(scenario, environment)
    unavailable = [environment.missing[each] for each in scenario.packages if each in environment.missing]
    if unavailable:
        return Row(scenario.name, version, "skip", 0, 0.0, unavailable[0])
    began = time.monotonic()
    connections = 0
    cause = ""
    try:
        with tempfile.TemporaryDirectory(prefix="compat-programs-", ignore_cleanup_errors=True) as folder:
            connections = _play(
                scenario, environment.python, folder, deadline=began + scenario.limit_s, control=control
            )
    except Failed as failure:
        cause = f"{failure}{failure.written}"
    return Row(
        scenario.name, version, "fail" if cause else "pass", connections, round(time.monotonic() - began, 2), cause
    )


def version_of(scenario: Scenario, environment: Environment) -> str:
    if not scenario.packages:
        return "Python " + ".".join(map(str, sys.version_info[:3]))
    return environment.versions().get(normal(scenario.packages[0]), "")


def _play(scenario: Scenario, python: str, folder: str, *, deadline: float, control: bool) -> int:
    """Both sides from start to end; how many connections uTP carried. Raises Failed with the cause."""
    with Children() as children:
        server = _start(children, scenario, python, folder, "server", control=control)
        try:
            port = server.expect("port", deadline=deadline)
            client = _start(children, scenario, python, folder, "client", str(port), control=control)
            try:
                of_client = client.expect("report", deadline=deadline)
                of_server = _ask_report(server)
                status = client.wait(deadline=time.monotonic() + EXIT_S)
            except ChildFailed as failure:
                failure.written += _reason_of(client) or _reason_of(server)
                raise
        except ChildFailed as failure:
            failure.written += _reason_of(server) if not failure.written else ""
            raise
        finally:
            _end_with_its_children(server)
        if status != 0:
            raise ChildFailed(f"client: exit status {status}")
        return 0 if control else judge(scenario, of_client, of_server)


def judge(scenario: Scenario, of_client: dict[str, int], of_server: dict[str, int]) -> int:
    """How many connections were accepted over uTP, when the figures of both sides show that nothing else was used."""
    accepted = of_client["accepted"] + of_server["accepted"]
    initiated = of_client["initiated"] + of_server["initiated"]
    if not (of_client["initiated"] + of_client["accepted"] and of_server["initiated"] + of_server["accepted"]):
        raise Failed(f"no uTP connection: client {of_client}, server {of_server}")
    if min(accepted, initiated) < scenario.connections:
        raise Failed(f"{accepted} uTP connections, {scenario.connections} expected")
    for side, figures in ("client", of_client), ("server", of_server):
        if figures["tcp_sockets"]:
            raise Failed(f"{side}: {figures['tcp_sockets']} of its sockets are TCP")
        if figures["faults"]:
            raise Failed(f"{side}: {figures['faults']} faults in the engine")
    return accepted


def _start(
    children: Children, scenario: Scenario, python: str, folder: str, role: str, *arguments: str, control: bool
) -> Child:
    command = [python, "-m", "compat.programs.child", scenario.module, scenario.name, role, *arguments]
    environment = {name: "" for name in NOT_INHERITED if name in os.environ}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PYTHONFAULTHANDLER": "1", "HOME": folder}
    if control:
        environment["COMPAT_PROGRAMS_CONTROL"] = "1"
    return children.start(role, command, environment=environment, cwd=Path(folder))


def _ask_report(server: Child) -> dict[str, int]:
    assert server.process.stdin is not None
    with contextlib.suppress(OSError):
        server.process.stdin.write(b"report\n")
        server.process.stdin.flush()
    figures: dict[str, int] = server.expect("report", deadline=time.monotonic() + REPORT_S)
    return figures


def _reason_of(child: Child) -> str:
    """What the child said of its failure, if it did."""
    try:
        return f": {child.expect('failed', deadline=time.monotonic())}"
    except ChildFailed:
        return ""


def _end_with_its_children(server: Child) -> None:
    """Workers that a server forked go with it: each child leads a process group of its own."""
    if server.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
