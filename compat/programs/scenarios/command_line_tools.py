"""Tools that people run from a shell, called by their main functions: HTTPie, yt-dlp, twine, pproxy, supervisor."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, STREAMED, answer, digest, noise, wsgi


def serve_web(ready: Ready) -> None:
    from waitress.server import create_server

    server = create_server(wsgi, host=HOST, port=0)
    ready(server.effective_port)
    server.run()


def use_httpie(port: int) -> None:
    from httpie.core import main

    os.environ["HTTPIE_CONFIG_DIR"] = os.getcwd()
    Path("posted").write_bytes(noise(200_000))
    base = ["http", "--ignore-stdin", "--check-status", "--body", "--output"]
    assert main([*base, "hello", f"http://{HOST}:{port}/hello?httpie"]) == 0
    assert Path("hello").read_text(encoding="utf-8").strip() == f"hello httpie from {HOST}"
    assert main([*base, "digest", "POST", f"http://{HOST}:{port}/digest", "@posted"]) == 0
    assert Path("digest").read_text(encoding="utf-8").strip() == digest(noise(200_000))
    assert main(["http", "--ignore-stdin", "--download", "--output", "stream", f"http://{HOST}:{port}/stream"]) == 0
    assert Path("stream").read_bytes() == b"".join(STREAMED)
    assert main([*base, "nothing", f"http://{HOST}:{port}/nowhere"]) == 4


def serve_video(ready: Ready) -> None:
    import functools
    import http.server

    Path("site").mkdir()
    Path("site/film.mp4").write_bytes(noise(3_000_000))

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

    handler: Any = functools.partial(Handler, directory="site")
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as server:
        ready(server.server_port)
        server.serve_forever()


def use_yt_dlp(port: int) -> None:
    from yt_dlp import YoutubeDL

    options: Any = {"outtmpl": "got.%(ext)s", "quiet": True, "noprogress": True, "cachedir": False, "fixup": "never"}
    with YoutubeDL(options) as downloader:
        assert downloader.download([f"http://{HOST}:{port}/film.mp4"]) == 0
    assert Path("got.mp4").read_bytes() == noise(3_000_000)


def serve_index(ready: Ready) -> None:
    import pypiserver
    from waitress.server import create_server

    Path("packages").mkdir()
    application = pypiserver.app(roots=[Path("packages").absolute()], password_file=".", authenticate=[])
    server = create_server(application, host=HOST, port=0)
    ready(server.effective_port)
    server.run()


def use_twine(port: int) -> None:
    import zipfile

    from twine.cli import dispatch

    name = "shipped-1.2-py3-none-any.whl"
    with zipfile.ZipFile(name, "w") as wheel:
        wheel.writestr("shipped/noise.bin", noise(400_000))
        wheel.writestr("shipped-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: shipped\nVersion: 1.2\n")
        wheel.writestr("shipped-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("shipped-1.2.dist-info/RECORD", "")
    options = ["--non-interactive", "--disable-progress-bar", "--username", "a", "--password", "b"]
    dispatch(["upload", *options, "--repository-url", f"http://{HOST}:{port}/", name])
    assert Path("packages", name).read_bytes() == Path(name).read_bytes()


def serve_pproxy_and_web(ready: Ready) -> None:
    import pproxy

    threading.Thread(
        target=serve_web, args=(lambda port: Path("web").write_text(str(port), encoding="utf-8"),), daemon=True
    ).start()

    async def main() -> None:
        server = pproxy.Server(f"http+socks4+socks5://{HOST}:0")
        handler = await server.start_server({"rserver": [pproxy.Connection("direct://")], "verbose": lambda *_: None})
        ready(handler.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


def go_through_pproxy(port: int) -> None:
    """One port that speaks three proxies' languages."""
    import requests

    web_port = int(Path("web").read_text(encoding="utf-8"))
    for scheme in ("http", "socks4", "socks5"):
        with requests.Session() as session:
            session.proxies = {"http": f"{scheme}://{HOST}:{port}"}
            got = session.get(f"http://{HOST}:{web_port}/hello?{scheme}", timeout=15)
            assert got.text == f"hello {scheme} from {HOST}"
            assert session.get(f"http://{HOST}:{web_port}/stream", timeout=15).content == b"".join(STREAMED)


SUPERVISED = """\
[supervisord]
nodaemon=true
logfile=/dev/null
logfile_maxbytes=0
pidfile={folder}/supervisord.pid
childlogdir={folder}
[inet_http_server]
port={host}:{port}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[program:sleeper]
command={python} -c "import time; print('awake', flush=True); time.sleep(600)"
autostart=false
startsecs=0
stdout_logfile={folder}/sleeper.log
"""


def serve_supervisor(ready: Ready) -> None:
    import socket

    from supervisor.supervisord import main

    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    text = SUPERVISED.format(folder=os.getcwd(), host=HOST, port=port, python=sys.executable)
    Path("supervisord.conf").write_text(text, encoding="utf-8")

    def announce() -> None:
        while True:
            try:
                socket.create_connection((HOST, port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                ready(port)
                return

    threading.Thread(target=announce, daemon=True).start()
    main(["-c", "supervisord.conf"])


def use_supervisor(port: int) -> None:
    """A process started, watched, read and stopped, by the calls that supervisorctl makes."""
    import xmlrpc.client

    proxy: Any = xmlrpc.client.ServerProxy(f"http://{HOST}:{port}/RPC2")
    supervisor = proxy.supervisor
    assert supervisor.getState()["statename"] == "RUNNING"
    assert supervisor.startProcess("sleeper")
    deadline = time.monotonic() + 15
    while "awake" not in supervisor.readProcessStdoutLog("sleeper", 0, 100):
        assert time.monotonic() < deadline, supervisor.getProcessInfo("sleeper")
        time.sleep(0.05)
    assert supervisor.getProcessInfo("sleeper")["statename"] == "RUNNING"
    assert supervisor.stopProcess("sleeper")
    assert supervisor.getProcessInfo("sleeper")["statename"] == "STOPPED"
    import http.client

    connection = http.client.HTTPConnection(HOST, port, timeout=15)
    status, page = answer(connection, "GET", "/")
    connection.close()
    assert status == 200 and b"sleeper" in page


SCENARIOS = [
    Scenario("httpie", ("httpie", "waitress"), serve_web, use_httpie, connections=4),
    Scenario("yt-dlp", ("yt-dlp",), serve_video, use_yt_dlp),
    Scenario("twine", ("twine", "pypiserver", "waitress"), serve_index, use_twine),
    Scenario(
        "pproxy", ("pproxy", "requests", "PySocks", "waitress"), serve_pproxy_and_web, go_through_pproxy, connections=6
    ),
    Scenario("supervisor", ("supervisor",), serve_supervisor, use_supervisor, connections=3),
]
