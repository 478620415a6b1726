"""Scenarios that end badly, each in its own way, and one that is all right: what the runner of programs is tried on."""

from __future__ import annotations

import os
import socket
import threading

from compat.programs.scenario import Ready, Scenario


def serve(ready: Ready) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(100))


def ask(port: int, *, wanted: bytes = b"hello") -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == wanted


def die(ready: Ready) -> None:
    os._exit(7)


def hang(port: int) -> None:
    threading.Event().wait()


def touch_nothing(port: int) -> None:
    pass


def serve_in_a_child(ready: Ready) -> None:
    """Leaves a process that would outlive a careless runner."""
    with open("child", "w", encoding="utf-8") as file:
        pid = os.fork()
        if pid == 0:
            threading.Event().wait()
        file.write(str(pid))
    serve(ready)


def wrong_answer(port: int) -> None:
    ask(port, wanted=b"hallo")


def tell_pid_of_child(port: int) -> None:
    ask(port)
    with (
        open("child", encoding="utf-8") as file,
        open(os.environ["TROUBLED_PROGRAMS_PID"], "w", encoding="utf-8") as word,
    ):
        word.write(file.read())


SCENARIOS = [
    Scenario("good", (), serve, ask),
    Scenario("wrong answer", (), serve, wrong_answer),
    Scenario("over TCP", (), serve, ask, patched=False),
    Scenario("no connection", (), serve, touch_nothing),
    Scenario("too few", (), serve, ask, connections=2),
    Scenario("server dies", (), die, ask),
    Scenario("hangs", (), serve, hang, limit_s=5.0),
    Scenario("leaves a child", (), serve_in_a_child, tell_pid_of_child),
    Scenario("cannot be had", ("no-such-package",), serve, ask),
]
