"""What has a protocol of its own: DNS over streams, git, Modbus, DICOM, telnet, SOCKS and HTTP proxies, PyPI."""

from __future__ import annotations

import asyncio
import socketserver
import struct
import threading
from pathlib import Path
from typing import Any

from compat.programs import certificate
from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, STREAMED, digest, noise, wsgi


def serve_dns(ready: Ready, *, tls: bool = False) -> None:
    import dns.message
    import dns.rrset

    class Names(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while size := self.rfile.read(2):
                query = dns.message.from_wire(self.rfile.read(struct.unpack("!H", size)[0]))
                answer = dns.message.make_response(query)
                name = query.question[0].name
                texts = [f'"{noise(100, number).hex()}"' for number in range(100)]
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *texts))
                wire = answer.to_wire()
                self.wfile.write(struct.pack("!H", len(wire)) + wire)

    class Server(socketserver.ThreadingTCPServer):
        def get_request(self) -> tuple[Any, Any]:
            sock, peer = super().get_request()
            return (context.wrap_socket(sock, server_side=True) if context else sock), peer

    context = certificate.server_context() if tls else None
    with Server((HOST, 0), Names) as server:
        ready(server.server_address[1])
        server.serve_forever()


def ask_dns(port: int) -> None:
    """By connections of their own, over one, by asyncio."""
    import socket

    import dns.asyncquery
    import dns.message
    import dns.query

    wanted = sorted(f'"{noise(100, number).hex()}"' for number in range(100))

    def check(answer: Any) -> None:
        assert sorted(record.to_text() for record in answer.answer[0]) == wanted

    for number in range(3):
        check(dns.query.tcp(dns.message.make_query(f"{number}.example", "TXT"), HOST, timeout=20, port=port))
    with socket.create_connection((HOST, port)) as sock:
        sock.setblocking(False)
        for number in range(10):
            check(dns.query.tcp(dns.message.make_query(f"{number}.example", "TXT"), HOST, timeout=20, sock=sock))

    async def main() -> None:
        query = dns.message.make_query("async.example", "TXT")
        for answer in await asyncio.gather(*(dns.asyncquery.tcp(query, HOST, timeout=20, port=port) for _ in range(5))):
            check(answer)

    asyncio.run(main())


def serve_git(ready: Ready) -> None:
    from dulwich.repo import Repo
    from dulwich.server import DictBackend, TCPGitServer

    Path("origin").mkdir()
    repo = Repo.init_bare("origin")
    server = TCPGitServer(DictBackend({b"/": repo}), HOST, 0)
    ready(server.server_address[1])
    server.serve_forever()


def push_and_clone(port: int) -> None:
    from dulwich import porcelain

    porcelain.init("work").close()
    for number in range(5):
        file = Path(f"work/{number}.bin").absolute()
        file.write_bytes(noise(100_000, number))
        porcelain.add("work", [file])
        head = porcelain.commit("work", message=b"commit %d" % number, author=b"a <a@b>", committer=b"a <a@b>")
    url = f"git://{HOST}:{port}/"
    porcelain.push("work", url, "refs/heads/master:refs/heads/main")
    porcelain.clone(url, "clone", branch=b"main").close()
    for number in range(5):
        assert Path(f"clone/{number}.bin").read_bytes() == noise(100_000, number)
    assert porcelain.ls_remote(url).refs[b"refs/heads/main"] == head


def serve_modbus(ready: Ready) -> None:
    from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext
    from pymodbus.server import ModbusTcpServer

    try:
        from pymodbus.datastore import ModbusDeviceContext
    except ImportError:
        from pymodbus.datastore import ModbusSlaveContext as ModbusDeviceContext

    async def main() -> None:
        device = ModbusDeviceContext(hr=ModbusSequentialDataBlock(1, [7 * number for number in range(200)]))
        server = ModbusTcpServer(ModbusServerContext(device, True), address=(HOST, 0))
        await server.listen()
        ready(server.transport.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


def use_modbus(port: int) -> None:
    from pymodbus.client import ModbusTcpClient

    with ModbusTcpClient(HOST, port=port, timeout=10) as client:
        for start in range(0, 100, 10):
            assert client.read_holding_registers(start, count=10).registers == [
                7 * each for each in range(start, start + 10)
            ]
        client.write_registers(5, [1, 2, 3])
        assert client.read_holding_registers(4, count=5).registers == [28, 1, 2, 3, 56]


def serve_dicom(ready: Ready) -> None:
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import CTImageStorage, Verification

    def on_store(event: Any) -> int:
        return 0x0000 if digest(event.dataset.PixelData) == event.dataset.PatientID else 0xC000

    entity = AE()
    entity.add_supported_context(Verification)
    entity.add_supported_context(CTImageStorage)
    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    ready(server.server_address[1])
    threading.Event().wait()


def store_dicom(port: int) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, generate_uid
    from pynetdicom import AE
    from pynetdicom.sop_class import CTImageStorage, Verification

    entity = AE()
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage, ImplicitVRLittleEndian)
    association = entity.associate(HOST, port)
    assert association.is_established
    assert association.send_c_echo().Status == 0
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.PatientID, image.PixelData = digest(noise(600_000)), noise(600_000)
    image.BitsAllocated = 16
    assert association.send_c_store(image).Status == 0
    association.release()


def serve_telnet(ready: Ready) -> None:
    import telnetlib3

    async def shell(reader: Any, writer: Any) -> None:
        while line := await reader.readline():
            writer.write(f"{line.strip()[::-1]}\r\n")
            await writer.drain()
            if line.strip() == "bye":
                break
        writer.close()

    async def main() -> None:
        server = await telnetlib3.create_server(host=HOST, port=0, shell=shell, connect_maxwait=0.5, encoding="utf8")
        ready(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


def use_telnet(port: int) -> None:
    import telnetlib3

    async def main() -> None:
        reader, writer = await telnetlib3.open_connection(HOST, port, encoding="utf8", connect_minwait=0.1)
        for line in ("hello over telnet", "bye"):
            writer.write(f"{line}\r\n")
            while True:
                answer = await asyncio.wait_for(reader.readline(), 15)
                assert answer, "the server hung up"
                if line[::-1] in answer:
                    break
        writer.close()

    asyncio.run(main())


class SocksServer(socketserver.StreamRequestHandler):
    """SOCKS 5 without a password."""

    def handle(self) -> None:
        import select
        import socket

        self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\5\0")
        _, _, _, kind = self.rfile.read(4)
        host = socket.inet_ntoa(self.rfile.read(4)) if kind == 1 else self.rfile.read(self.rfile.read(1)[0]).decode()
        port = struct.unpack("!H", self.rfile.read(2))[0]
        with socket.create_connection((host, port)) as target:
            self.wfile.write(b"\5\0\0\1" + bytes(6))
            ends = {self.request: target, target: self.request}
            while ends:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(65536)
                    if data:
                        ends[end].sendall(data)
                    else:
                        ends.pop(end).shutdown(socket.SHUT_WR)

    rbufsize = 0


def serve_socks_and_web(ready: Ready) -> None:
    """The web server behind the proxy is told to the client in a file."""
    from cheroot.wsgi import Server

    web = Server((HOST, 0), wsgi)
    web.prepare()
    Path("web").write_text(str(web.bind_addr[1]), encoding="utf-8")
    threading.Thread(target=web.serve, daemon=True).start()
    server = socketserver.ThreadingTCPServer((HOST, 0), SocksServer)
    ready(server.server_address[1])
    server.serve_forever()


def go_through_socks(port: int) -> None:
    import requests
    import socks

    web_port = int(Path("web").read_text(encoding="utf-8"))
    sock = socks.socksocket()
    sock.set_proxy(socks.SOCKS5, HOST, port)
    sock.settimeout(20)
    sock.connect((HOST, web_port))
    sock.sendall(b"GET /hello?socks HTTP/1.0\r\n\r\n")
    with sock.makefile("rb") as answer:
        assert answer.read().endswith(f"hello socks from {HOST}".encode())
    sock.close()
    proxies = {"http": f"socks5h://{HOST}:{port}"}
    with requests.Session() as session:
        assert session.get(f"http://{HOST}:{web_port}/stream", proxies=proxies, timeout=20).content == b"".join(
            STREAMED
        )


def serve_proxy_and_web(ready: Ready) -> None:
    import proxy
    from cheroot.wsgi import Server

    web = Server((HOST, 0), wsgi)
    web.prepare()
    Path("web").write_text(str(web.bind_addr[1]), encoding="utf-8")
    threading.Thread(target=web.serve, daemon=True).start()
    arguments = ["--hostname", HOST, "--port", "0", "--num-workers", "1", "--num-acceptors", "1", "--threadless"]
    with proxy.Proxy([*arguments, "--log-level", "w"]) as running:
        ready(running.flags.port)
        threading.Event().wait()


def go_through_proxy(port: int) -> None:
    """Plain requests by way of the proxy, and a tunnel."""
    import http.client

    import requests

    web_port = int(Path("web").read_text(encoding="utf-8"))
    base = f"http://{HOST}:{web_port}"
    with requests.Session() as session:
        session.proxies = {"http": f"http://{HOST}:{port}"}
        assert session.get(f"{base}/hello?proxy", timeout=15).text == f"hello proxy from {HOST}"
        assert session.post(f"{base}/digest", data=noise(200_000), timeout=15).text == digest(noise(200_000))
    tunnel = http.client.HTTPConnection(HOST, port, timeout=15)
    tunnel.set_tunnel(HOST, web_port)
    tunnel.request("GET", "/stream")
    assert tunnel.getresponse().read() == b"".join(STREAMED)
    tunnel.close()


def serve_packages(ready: Ready) -> None:
    import zipfile

    import pypiserver
    from waitress.server import create_server

    Path("packages").mkdir()
    with zipfile.ZipFile("packages/shipped-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shipped/__init__.py", "")
        wheel.writestr("shipped/noise.bin", noise(400_000))
        wheel.writestr("shipped-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: shipped\nVersion: 1.2\n")
        wheel.writestr("shipped-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("shipped-1.2.dist-info/RECORD", "")
    server = create_server(pypiserver.app(roots=[Path("packages").absolute()]), host=HOST, port=0)
    ready(server.effective_port)
    server.run()


def install_with_pip(port: int) -> None:
    """pip, in this process and so over uTP, from an index that has one package."""
    import os

    for name in [name for name in os.environ if name.startswith("PIP_")]:
        del os.environ[name]
    os.environ["PIP_CONFIG_FILE"] = os.devnull
    from pip._internal.cli.main import main

    index = f"http://{HOST}:{port}/simple/"
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--target", "installed", "--no-compile"]
    assert main(["install", "--index-url", index, *options, "shipped"]) == 0
    assert Path("installed/shipped/noise.bin").read_bytes() == noise(400_000)


SCENARIOS = [
    Scenario("dnspython", ("dnspython",), serve_dns, ask_dns, connections=9, quick=True),
    Scenario("dulwich", ("dulwich",), serve_git, push_and_clone, connections=3, quick=True),
    Scenario("pymodbus", ("pymodbus",), serve_modbus, use_modbus),
    Scenario("pynetdicom", ("pynetdicom",), serve_dicom, store_dicom),
    Scenario("telnetlib3", ("telnetlib3",), serve_telnet, use_telnet),
    Scenario("PySocks", ("PySocks", "requests", "cheroot"), serve_socks_and_web, go_through_socks, 4, quick=True),
    Scenario("proxy.py", ("proxy.py", "requests", "cheroot"), serve_proxy_and_web, go_through_proxy, connections=2),
    Scenario("pip", ("pypiserver", "waitress"), serve_packages, install_with_pip),
]
