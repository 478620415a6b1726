"""Servers of WSGI applications, each with the same application and client (compat.programs.web)."""

from __future__ import annotations

import functools
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, exercise, wsgi


def serve_wsgiref(ready: Ready) -> None:
    from wsgiref.simple_server import make_server

    with make_server(HOST, 0, wsgi) as server:
        ready(server.server_port)
        server.serve_forever()


def serve_waitress(ready: Ready, **settings: Any) -> None:
    from waitress.server import create_server

    server = create_server(wsgi, host=HOST, port=0, threads=4, **settings)
    ready(server.effective_port)
    server.run()


def serve_cheroot(ready: Ready) -> None:
    from cheroot.wsgi import Server

    server = Server((HOST, 0), wsgi, numthreads=4)
    server.prepare()
    ready(server.bind_addr[1])
    server.serve()


def serve_cherrypy(ready: Ready) -> None:
    import cherrypy

    cherrypy.config.update({"server.socket_port": 0, "server.socket_host": HOST, "engine.autoreload.on": False})
    cherrypy.tree.graft(wsgi, "/")
    cherrypy.engine.start()
    ready(cherrypy.server.httpserver.bind_addr[1])
    cherrypy.engine.block()


def serve_werkzeug(ready: Ready, **settings: Any) -> None:
    from werkzeug.serving import make_server

    server = make_server(HOST, 0, wsgi, **settings)
    ready(server.server_port)
    server.serve_forever()


SCENARIOS = [
    Scenario("wsgiref", (), serve_wsgiref, functools.partial(exercise, chunked=False), connections=9),
    Scenario("waitress", ("waitress",), serve_waitress, exercise, connections=7, quick=True),
    Scenario(
        "waitress-poll",
        ("waitress",),
        functools.partial(serve_waitress, asyncore_use_poll=True),
        exercise,
        connections=7,
    ),
    Scenario("cheroot", ("cheroot",), serve_cheroot, exercise, connections=7, quick=True),
    Scenario("cherrypy", ("CherryPy",), serve_cherrypy, exercise, connections=7),
    Scenario("werkzeug", ("werkzeug",), functools.partial(serve_werkzeug, threaded=True), exercise, connections=7),
    Scenario(
        "werkzeug-processes", ("werkzeug",), functools.partial(serve_werkzeug, processes=4), exercise, connections=7
    ),
]
