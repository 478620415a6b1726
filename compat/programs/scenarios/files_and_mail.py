"""FTP, WebDAV, mail: protocols of several connections, or of one that turns into TLS half way."""

from __future__ import annotations

import asyncio
import functools
import io
import ssl
from pathlib import Path

from compat.programs import certificate
from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, digest, noise

USER, PASSWORD = "user", "of the scenario"


def serve_ftp(ready: Ready, *, tls: bool = False) -> None:
    from pyftpdlib import handlers
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.servers import FTPServer

    Path("share").mkdir()
    authorizer = DummyAuthorizer()
    authorizer.add_user(USER, PASSWORD, "share", perm="elradfmwMT")
    handler = handlers.TLS_FTPHandler if tls else handlers.FTPHandler
    handler.authorizer = authorizer
    if tls:
        certificate.issue()
        handler.certfile = certificate.IDENTITY
        handler.tls_control_required = handler.tls_data_required = True
    server = FTPServer((HOST, 0), handler)
    ready(server.address[1])
    server.serve_forever()


def transfer_with_ftplib(port: int, *, passive: bool = True, tls: bool = False) -> None:
    import ftplib

    ftp = ftplib.FTP_TLS(context=_unchecked(), timeout=20) if tls else ftplib.FTP(timeout=20)
    with ftp:
        ftp.connect(HOST, port)
        ftp.login(USER, PASSWORD)
        if isinstance(ftp, ftplib.FTP_TLS):
            ftp.prot_p()
        ftp.set_pasv(passive)
        data = noise(1_500_000)
        assert ftp.storbinary("STOR a.bin", io.BytesIO(data)).startswith("226")
        assert ftp.size("a.bin") == len(data)
        received = bytearray()
        assert ftp.retrbinary("RETR a.bin", received.extend).startswith("226")
        assert digest(bytes(received)) == digest(data)
        del received[:]
        ftp.retrbinary("RETR a.bin", received.extend, rest=1_000_000)
        assert bytes(received) == data[1_000_000:]
        ftp.mkd("folder")
        ftp.rename("a.bin", "folder/b.bin")
        assert sorted(ftp.nlst()) == ["folder"]
        assert [(name, facts["size"]) for name, facts in ftp.mlsd("folder", ["size"])] == [("b.bin", str(len(data)))]
        try:
            ftp.retrbinary("RETR missing", received.extend)
        except ftplib.error_perm as error:
            assert str(error).startswith("550")
        else:
            raise AssertionError("a missing file was sent")
        assert ftp.quit().startswith("221")


def _unchecked() -> ssl.SSLContext:
    """ftplib names the host in data connections as the server wrote it; the name is not what is tested."""
    context = certificate.client_context()
    context.check_hostname = False
    return context


def serve_aioftp(ready: Ready) -> None:
    import aioftp

    async def main() -> None:
        Path("share").mkdir()
        server = aioftp.Server([aioftp.User(USER, PASSWORD, base_path=Path("share").absolute())])
        await server.start(HOST, 0)
        ready(server.server_port)
        await server.serve_forever()

    asyncio.run(main())


def transfer_with_aioftp(port: int) -> None:
    import aioftp

    async def main() -> None:
        async with aioftp.Client.context(HOST, port, USER, PASSWORD) as client:
            data = noise(1_000_000)
            async with client.upload_stream("a.bin") as stream:
                await stream.write(data)
            received = bytearray()
            async with client.download_stream("a.bin") as stream:
                async for block in stream.iter_by_block():
                    received += block
            assert bytes(received) == data
            assert [path.name for path, facts in await client.list()] == ["a.bin"]

    asyncio.run(main())


def serve_webdav(ready: Ready) -> None:
    from cheroot.wsgi import Server
    from wsgidav.wsgidav_app import WsgiDAVApp

    Path("share").mkdir()
    settings = {"*": {USER: {"password": PASSWORD}}}
    config = {
        "provider_mapping": {"/": str(Path("share").absolute())},
        "simple_dc": {"user_mapping": settings},
        "verbose": 1,
    }
    server = Server((HOST, 0), WsgiDAVApp(config))
    server.prepare()
    ready(server.bind_addr[1])
    server.serve()


def use_webdav(port: int) -> None:
    import xml.etree.ElementTree

    import requests
    from requests.auth import HTTPDigestAuth

    base = f"http://{HOST}:{port}"
    with requests.Session() as session:
        session.auth = HTTPDigestAuth(USER, PASSWORD)
        assert session.request("MKCOL", f"{base}/folder", timeout=20).status_code == 201
        assert session.put(f"{base}/folder/a.bin", data=noise(800_000), timeout=20).status_code == 201
        moved = session.request(
            "MOVE", f"{base}/folder/a.bin", headers={"Destination": f"{base}/folder/b.bin"}, timeout=20
        )
        assert moved.status_code == 201
        listing = session.request("PROPFIND", f"{base}/folder/", headers={"Depth": "1"}, timeout=20)
        assert listing.status_code == 207
        names = [each.text for each in xml.etree.ElementTree.fromstring(listing.content).iter("{DAV:}href")]
        assert names == ["/folder/", "/folder/b.bin"], names
        part = session.get(f"{base}/folder/b.bin", headers={"Range": "bytes=1000-1999"}, timeout=20)
        assert (part.status_code, part.content) == (206, noise(800_000)[1000:2000])
        assert session.delete(f"{base}/folder/b.bin", timeout=20).status_code == 204
        assert session.get(f"{base}/folder/b.bin", timeout=20).status_code == 404


def serve_smtp(ready: Ready) -> None:
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

    class Digest:
        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
            assert session.ssl, "not encrypted"
            content = envelope.original_content or b""
            return f"250 {digest(content)} for {len(envelope.rcpt_tos)}"

    def authenticator(server: object, session: object, envelope: object, mechanism: str, data: object) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (USER.encode(), PASSWORD.encode()))  # type: ignore[attr-defined]

    class Announced(Controller):
        """Its own check connects to the port that was asked for, and 0 was."""

        def _trigger_server(self) -> None:
            self.port = self.server.sockets[0].getsockname()[1]
            super()._trigger_server()

    controller = Announced(
        Digest(),
        hostname=HOST,
        port=0,
        tls_context=certificate.server_context(),
        require_starttls=True,
        authenticator=authenticator,
        auth_required=True,
    )
    controller.start()
    ready(controller.port)


def mail_with_smtplib(port: int) -> None:
    import smtplib

    lines = [noise(30, number).hex().encode() for number in range(5000)]
    text = b"\r\n".join([b"Subject: noise", b"", *lines, b""])
    with smtplib.SMTP(HOST, port, timeout=20) as client:
        client.ehlo("client.example")
        try:
            client.login(USER, PASSWORD)
        except smtplib.SMTPNotSupportedError:
            pass
        else:
            raise AssertionError("a password went out in the clear")
        code, _ = client.starttls(context=certificate.client_context())
        assert code == 220
        client.login(USER, PASSWORD)
        assert client.mail("a@example.com")[0] == 250
        for name in ("b", "c"):
            assert client.rcpt(f"{name}@example.com")[0] == 250
        assert client.data(text) == (250, f"{digest(text)} for 2".encode())


def mail_with_aiosmtplib(port: int) -> None:
    from email.message import EmailMessage

    import aiosmtplib

    async def main() -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", "noise"
        message.set_content(noise(100_000).hex())
        client = aiosmtplib.SMTP(
            hostname=HOST, port=port, tls_context=certificate.client_context(), start_tls=True, timeout=20
        )
        async with client:
            await client.login(USER, PASSWORD)
            errors, answer = await client.send_message(message)
            assert errors == {}
            assert answer.endswith(" for 1"), answer

    asyncio.run(main())


def serve_imap(ready: Ready) -> None:
    """As much of IMAP as one mailbox needs."""
    import re
    import socketserver

    mails: list[bytes] = []

    class Mailbox(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")
            while line := self.rfile.readline():
                tag, _, command = line.rstrip().partition(b" ")
                verb = command.removeprefix(b"UID ").split(b" ")[0].upper()
                if verb == b"CAPABILITY":
                    self.wfile.write(b"* CAPABILITY IMAP4rev1\r\n")
                elif verb in (b"SELECT", b"EXAMINE"):
                    self.wfile.write(b"* %d EXISTS\r\n* 0 RECENT\r\n* FLAGS ()\r\n" % len(mails))
                elif verb == b"APPEND":
                    size = int(re.findall(rb"\{(\d+)\}$", command)[0])
                    self.wfile.write(b"+ go on\r\n")
                    mails.append(self.rfile.read(size))
                    self.rfile.readline()
                elif verb == b"SEARCH":
                    numbers = b"".join(b" %d" % (index + 1) for index in range(len(mails)))
                    self.wfile.write(b"* SEARCH%s\r\n" % numbers)
                elif verb == b"FETCH":
                    for index, mail in enumerate(mails, 1):
                        self.wfile.write(b"* %d FETCH (UID %d BODY[] {%d}\r\n" % (index, index, len(mail)))
                        self.wfile.write(mail + b")\r\n")
                elif verb == b"LOGOUT":
                    self.wfile.write(b"* BYE\r\n")
                self.wfile.write(tag + b" OK done\r\n")

    with socketserver.ThreadingTCPServer((HOST, 0), Mailbox) as server:
        ready(server.server_address[1])
        server.serve_forever()


def read_with_imapclient(port: int) -> None:
    from imapclient import IMAPClient

    mails = [b"Subject: %d\r\n\r\n" % number + noise(60_000, number).hex().encode() for number in range(5)]
    with IMAPClient(HOST, port, ssl=False, timeout=20) as client:
        client.login(USER, "password")
        assert client.select_folder("INBOX")[b"EXISTS"] == 0
        for mail in mails:
            client.append("INBOX", mail)
        found = client.search("ALL")
        assert found == [1, 2, 3, 4, 5]
        assert [fetched[b"BODY[]"] for fetched in client.fetch(found, ["BODY[]"]).values()] == mails


FTP = ("pyftpdlib",)
FTP_TLS = ("pyftpdlib", "pyOpenSSL", "trustme")
SCENARIOS = [
    Scenario("pyftpdlib-passive", FTP, serve_ftp, transfer_with_ftplib, connections=6, quick=True),
    Scenario(
        "pyftpdlib-active",
        FTP,
        serve_ftp,
        functools.partial(transfer_with_ftplib, passive=False),
        connections=6,
        quick=True,
    ),
    Scenario(
        "pyftpdlib-tls",
        FTP_TLS,
        functools.partial(serve_ftp, tls=True),
        functools.partial(transfer_with_ftplib, tls=True),
        connections=6,
    ),
    Scenario("aioftp", ("aioftp",), serve_aioftp, transfer_with_aioftp, connections=4),
    Scenario("wsgidav", ("wsgidav", "cheroot", "requests"), serve_webdav, use_webdav),
    Scenario("aiosmtpd", ("aiosmtpd", "trustme"), serve_smtp, mail_with_smtplib, quick=True),
    Scenario("aiosmtplib", ("aiosmtplib", "aiosmtpd", "trustme"), serve_smtp, mail_with_aiosmtplib),
    Scenario("imapclient", ("IMAPClient",), serve_imap, read_with_imapclient),
]
