"""Web frameworks on servers of their own kind, with the framework's own idea of a request in the middle."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, STREAMED, digest, listener, noise


def serve_flask(ready: Ready) -> None:
    import flask
    from werkzeug.serving import make_server

    app = flask.Flask(__name__)
    app.secret_key = "of the scenario"

    @app.post("/upload/<name>")
    def upload(name: str) -> flask.Response:
        files = {field: digest(file.read()) for field, file in flask.request.files.items()}
        flask.session["uploads"] = flask.session.get("uploads", 0) + 1
        return flask.jsonify(name=name, files=files, form=flask.request.form, uploads=flask.session["uploads"])

    @app.get("/stream")
    def stream() -> flask.Response:
        return flask.Response(iter(STREAMED), mimetype="application/octet-stream")

    server = make_server(HOST, 0, app, threaded=True)
    ready(server.server_port)
    server.serve_forever()


def use_uploads(port: int) -> None:
    """Multipart forms, cookies and a streamed answer, by requests."""
    import requests

    with requests.Session() as session:
        for count in (1, 2, 3):
            answer = session.post(
                f"http://{HOST}:{port}/upload/report",
                data={"title": "ünicode"},
                files={"file": ("a.bin", noise(400_000))},
                timeout=20,
            )
            assert answer.status_code == 200
            assert answer.json() == {
                "name": "report",
                "files": {"file": digest(noise(400_000))},
                "form": {"title": "ünicode"},
                "uploads": count,
            }
        with session.get(f"http://{HOST}:{port}/stream", stream=True, timeout=20) as answer:
            assert b"".join(answer.iter_content(10_000)) == b"".join(STREAMED)


def serve_django(ready: Ready) -> None:
    """runserver, in its own process, with its threads and without its reloader."""
    from django.conf import settings

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DEBUG=True, SECRET_KEY="of the scenario")
    import django
    from django.core.servers import basehttp
    from django.core.servers.basehttp import WSGIServer

    class Announced(WSGIServer):
        def server_activate(self) -> None:
            super().server_activate()
            ready(self.server_port)

    basehttp.WSGIServer = Announced
    django.setup()
    from django.core.management import call_command
    from django.core.management.commands import runserver

    runserver.Command.server_cls = Announced
    runserver.Command.requires_system_checks = []
    runserver.Command.check_migrations = lambda self: None
    call_command("runserver", f"{HOST}:0", use_reloader=False)


def django_urls() -> list[object]:
    from django.http import JsonResponse, StreamingHttpResponse
    from django.urls import path

    def upload(request: object, name: str) -> object:
        files = {field: digest(file.read()) for field, file in request.FILES.items()}  # type: ignore[attr-defined]
        uploads = int(request.COOKIES.get("uploads", 0)) + 1  # type: ignore[attr-defined]
        form = request.POST.dict()  # type: ignore[attr-defined]
        answer = JsonResponse({"name": name, "files": files, "form": form, "uploads": uploads})
        answer.set_cookie("uploads", str(uploads))
        return answer

    def stream(request: object) -> object:
        return StreamingHttpResponse(iter(STREAMED))

    return [path("upload/<name>", upload), path("stream", stream)]


def __getattr__(name: str) -> object:
    """Django asks this module for its addresses."""
    if name == "urlpatterns":
        return django_urls()
    raise AttributeError(name)


def serve_bottle(ready: Ready) -> None:
    import socketserver
    from wsgiref.simple_server import WSGIServer, make_server

    import bottle

    app = bottle.Bottle()

    @app.post("/upload/<name>")
    def upload(name: str) -> dict[str, object]:
        files = {field: digest(file.file.read()) for field, file in bottle.request.files.items()}
        uploads = int(bottle.request.get_cookie("uploads") or 0) + 1
        bottle.response.set_cookie("uploads", str(uploads))
        return {"name": name, "files": files, "form": {"title": bottle.request.forms.title}, "uploads": uploads}

    @app.get("/stream")
    def stream() -> object:
        return iter(STREAMED)

    class Threading(socketserver.ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Server(bottle.ServerAdapter):
        def run(self, handler: Any) -> None:
            with make_server(self.host, self.port, handler, server_class=Threading) as server:
                ready(server.server_port)
                server.serve_forever()

    bottle.run(app, server=Server, host=HOST, port=0, quiet=True)


def serve_falcon(ready: Ready) -> None:
    import falcon
    from waitress.server import create_server

    class Upload:
        def on_post(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
            files, form = {}, {}
            for part in request.media:
                if part.filename:
                    files[part.name] = digest(part.stream.read())
                else:
                    form[part.name] = part.text
            uploads = int(request.cookies.get("uploads", 0)) + 1
            response.set_cookie("uploads", str(uploads), secure=False)
            response.media = {"name": name, "files": files, "form": form, "uploads": uploads}

    class Stream:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            response.stream = iter(STREAMED)

    app = falcon.App()
    app.add_route("/upload/{name}", Upload())
    app.add_route("/stream", Stream())
    server = create_server(app, host=HOST, port=0)
    ready(server.effective_port)
    server.run()


def serve_asgi(ready: Ready, app: object) -> None:
    import uvicorn

    sock = listener()
    config = uvicorn.Config(app, loop="asyncio", log_level="warning")
    threading.Thread(target=lambda: ready(sock.getsockname()[1])).start()
    uvicorn.Server(config).run(sockets=[sock])


def serve_starlette(ready: Ready) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def upload(request: Request) -> Response:
        files, form = {}, {}
        async with request.form() as fields:
            for field, value in fields.items():
                if isinstance(value, str):
                    form[field] = value
                else:
                    files[field] = digest(await value.read())
        uploads = int(request.cookies.get("uploads", 0)) + 1
        answer = JSONResponse({"name": request.path_params["name"], "files": files, "form": form, "uploads": uploads})
        answer.set_cookie("uploads", str(uploads))
        return answer

    async def stream(request: Request) -> Response:
        return StreamingResponse(iter(STREAMED))

    serve_asgi(ready, Starlette(routes=[Route("/upload/{name}", upload, methods=["POST"]), Route("/stream", stream)]))


def serve_fastapi(ready: Ready) -> None:
    from fastapi import Cookie, FastAPI, File, Form
    from fastapi.responses import JSONResponse, StreamingResponse

    app = FastAPI()

    @app.post("/upload/{name}")
    async def upload(name: str, file: bytes = File(), title: str = Form(), uploads: int = Cookie(0)):  # type: ignore[no-untyped-def]
        fields = {"name": name, "files": {"file": digest(file)}, "form": {"title": title}, "uploads": uploads + 1}
        answer = JSONResponse(fields)
        answer.set_cookie("uploads", str(uploads + 1))
        return answer

    @app.get("/stream")
    def stream():  # type: ignore[no-untyped-def]
        return StreamingResponse(iter(STREAMED))

    serve_asgi(ready, app)


def serve_quart(ready: Ready) -> None:
    import asyncio

    import hypercorn.asyncio
    import hypercorn.config
    import quart

    app = quart.Quart(__name__)
    app.secret_key = "of the scenario"

    @app.post("/upload/<name>")
    async def upload(name: str) -> object:
        files = {field: digest(file.read()) for field, file in (await quart.request.files).items()}
        quart.session["uploads"] = quart.session.get("uploads", 0) + 1
        form = dict(await quart.request.form)
        return {"name": name, "files": files, "form": form, "uploads": quart.session["uploads"]}

    @app.get("/stream")
    async def stream() -> object:
        async def blocks() -> AsyncIterator[bytes]:
            for block in STREAMED:
                yield block

        return blocks()

    sock = listener()
    config = hypercorn.config.Config()
    config.bind = [f"fd://{sock.fileno()}"]
    ready(sock.getsockname()[1])
    asyncio.run(hypercorn.asyncio.serve(app, config, shutdown_trigger=asyncio.Event().wait))


SCENARIOS = [
    Scenario("flask", ("flask", "requests"), serve_flask, use_uploads, quick=True),
    Scenario("django-runserver", ("django", "requests"), serve_django, use_uploads),
    Scenario("bottle", ("bottle", "requests"), serve_bottle, use_uploads),
    Scenario("falcon", ("falcon", "waitress", "requests"), serve_falcon, use_uploads),
    Scenario("starlette", ("starlette", "python-multipart", "uvicorn", "requests"), serve_starlette, use_uploads),
    Scenario("fastapi", ("fastapi", "python-multipart", "uvicorn", "requests"), serve_fastapi, use_uploads),
    Scenario("quart", ("quart", "hypercorn", "requests"), serve_quart, use_uploads),
]
