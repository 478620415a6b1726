"""gunicorn: a master that listens and forks workers which accept, in each of its ways to work, and reloaded."""

from __future__ import annotations

import functools
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, answer, asgi, exercise, wsgi

WORKER_HEADER = "X-Worker"


def serve(ready: Ready, **settings: Any) -> None:
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):
        def load_config(self) -> None:
            options = {"bind": f"{HOST}:0", "workers": 2, "loglevel": "warning", "control_socket_disable": True}
            for name, value in (options | settings).items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)
            self.cfg.set("when_ready", lambda arbiter: ready(arbiter.LISTENERS[0].sock.getsockname()[1]))

        def load(self) -> Any:
            return asgi if "uvicorn" in str(self.cfg.worker_class_str).lower() else named_by_worker

    Application().run()


def named_by_worker(environ: dict[str, Any], start_response: Any) -> Any:
    """The common application; /worker tells the processes, /user whose they are, /reload has new ones started."""
    import os
    import signal

    if environ["PATH_INFO"] not in ("/worker", "/user", "/reload"):
        return wsgi(environ, start_response)
    if environ["PATH_INFO"] == "/reload":
        os.kill(os.getppid(), signal.SIGHUP)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getuid() if environ["PATH_INFO"] == "/user" else os.getpid()).encode()]


def serve_unprivileged(ready: Ready, **settings: Any) -> None:
    """As `gunicorn -u nobody -g nogroup`: the master listens as root, the workers accept as nobody."""
    import os

    if os.getuid() == 0:
        settings |= {"user": "nobody", "group": _group_of_nobody()}
    serve(ready, **settings)


def _group_of_nobody() -> str:
    """Debian says nogroup, others nobody."""
    import grp
    import pwd

    return grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name


def hundred_requests(port: int) -> None:
    """Each over a connection of its own, to workers that gave up what their master may."""
    import http.client
    import os
    import pwd

    expected = pwd.getpwnam("nobody").pw_uid if os.getuid() == 0 else os.getuid()
    for number in range(100):
        connection = http.client.HTTPConnection(HOST, port, timeout=20)
        if number % 10:
            wanted = f"hello {number} from 127.0.0.1".encode()
            assert answer(connection, "GET", f"/hello?{number}") == (200, wanted)
        else:
            assert answer(connection, "GET", "/user") == (200, str(expected).encode())
        connection.close()


def reload(port: int) -> None:
    """Requests go on while the workers are exchanged, and new processes answer after it."""
    import http.client
    import time

    def worker(path: str) -> int:
        connection = http.client.HTTPConnection(HOST, port, timeout=20)
        try:
            status, body = answer(connection, "GET", path)
            assert status == 200
            return int(body)
        finally:
            connection.close()

    before = {worker("/worker") for _ in range(10)} | {worker("/reload")}
    deadline = time.monotonic() + 20
    while worker("/worker") in before:
        assert time.monotonic() < deadline, "the old workers still answer"
        time.sleep(0.05)
    exercise(port)


SCENARIOS = [
    Scenario("gunicorn-sync", ("gunicorn",), serve, exercise, connections=7, quick=True),
    Scenario(
        "gunicorn-gthread",
        ("gunicorn",),
        functools.partial(serve, worker_class="gthread", threads=4),
        exercise,
        connections=7,
    ),
    Scenario(
        "gunicorn-uvicorn",
        ("gunicorn", "uvicorn-worker"),
        functools.partial(serve, worker_class="uvicorn_worker.UvicornH11Worker"),
        exercise,
        connections=7,
    ),
    Scenario(
        "gunicorn-tornado",
        ("gunicorn", "tornado"),
        functools.partial(serve, worker_class="tornado"),
        functools.partial(exercise, chunked=False),
        connections=7,
    ),
    Scenario("gunicorn-reload", ("gunicorn",), serve, reload, connections=12),
    *(
        Scenario(
            f"gunicorn-unprivileged-{worker_class}",
            ("gunicorn", "gevent") if worker_class == "gevent" else ("gunicorn",),
            functools.partial(serve_unprivileged, worker_class=worker_class),
            hundred_requests,
            connections=100,
            quick=worker_class == "gthread",
        )
        for worker_class in ("sync", "gthread", "gevent")
    ),
]
