"""SSH: paramiko (and Fabric on it) and asyncssh, each also as the server, commands and SFTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, digest, noise

USER, PASSWORD = "user", "of the scenario"
FILE_BYTES = 2_000_000


def serve_paramiko(ready: Ready) -> None:
    """Runs `digest` on what it is fed, and keeps files below share/."""
    import os
    import socketserver
    import threading

    import paramiko

    key = paramiko.ECDSAKey.generate()
    share = Path("share").absolute()
    share.mkdir()

    class Rules(paramiko.ServerInterface):
        def __init__(self) -> None:
            self.commands: list[Any] = []

        def check_auth_password(self, username: str, password: str) -> int:
            return paramiko.AUTH_SUCCESSFUL if (username, password) == (USER, PASSWORD) else paramiko.AUTH_FAILED

        def get_allowed_auths(self, username: str) -> str:
            return "password"

        def check_channel_request(self, kind: str, chanid: int) -> int:
            return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

        def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
            threading.Thread(target=self.run, args=(channel, command), daemon=True).start()
            return True

        def run(self, channel: Any, command: bytes) -> None:
            with channel:
                # Whatever the command: what is written before that can overtake the answer to the client's request.
                with channel.makefile("rb") as fed:
                    fed_digest = digest(fed.read())
                channel.sendall(fed_digest.encode() if command == b"digest" else b"ran " + command + b"\n")
                channel.send_exit_status(0 if command == b"digest" else 3)

    class Files(paramiko.SFTPServerInterface):
        def open(self, path: str, flags: int, attr: Any) -> Any:
            try:
                fd = os.open(share / path.lstrip("/"), flags, 0o600)
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)
            handle = paramiko.SFTPHandle(flags)
            handle.readfile = handle.writefile = os.fdopen(
                fd, "r+b" if flags & os.O_RDWR else "wb" if flags & 1 else "rb"
            )
            return handle

        def stat(self, path: str) -> Any:
            try:
                return paramiko.SFTPAttributes.from_stat((share / path.lstrip("/")).stat())
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)

        lstat = stat

        def chattr(self, path: str, attr: Any) -> int:
            (share / path.lstrip("/")).chmod(attr.st_mode & 0o777)
            return paramiko.SFTP_OK

        def list_folder(self, path: str) -> Any:
            return [paramiko.SFTPAttributes.from_stat(each.stat(), each.name) for each in sorted(share.iterdir())]

    class Door(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            transport = paramiko.Transport(self.request)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files)
            transport.start_server(server=Rules())
            transport.join()

    with socketserver.ThreadingTCPServer((HOST, 0), Door) as server:
        ready(server.server_address[1])
        server.serve_forever()


def use_paramiko(port: int) -> None:
    import paramiko

    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        settings: dict[str, Any] = {"look_for_keys": False, "allow_agent": False, "timeout": 20}
        try:
            client.connect(HOST, port, USER, "wrong", **settings)
        except paramiko.AuthenticationException:
            pass
        else:
            raise AssertionError("a wrong password was accepted")
        client.connect(HOST, port, USER, PASSWORD, **settings)
        stdin, stdout, _ = client.exec_command("digest", timeout=20)
        stdin.write(noise(FILE_BYTES))
        stdin.channel.shutdown_write()
        assert stdout.read().decode() == digest(noise(FILE_BYTES))
        assert stdout.channel.recv_exit_status() == 0
        with client.open_sftp() as sftp:
            with sftp.open("a.bin", "wb") as file:
                file.set_pipelined(True)
                file.write(noise(FILE_BYTES))
            assert sftp.stat("a.bin").st_size == FILE_BYTES
            assert sftp.listdir() == ["a.bin"]
            sftp.get("a.bin", "copy.bin")
        assert digest(Path("copy.bin").read_bytes()) == digest(noise(FILE_BYTES))


def use_fabric(port: int) -> None:
    import io

    import fabric

    settings = {"password": PASSWORD, "look_for_keys": False, "allow_agent": False, "timeout": 20}
    with fabric.Connection(HOST, USER, port, connect_kwargs=settings) as connection:
        ran = connection.run("some command", hide=True, warn=True, in_stream=io.StringIO("fed"))
        assert (ran.stdout, ran.exited) == ("ran some command\n", 3)
        Path("local.bin").write_bytes(noise(300_000))
        connection.put("local.bin", "remote.bin")
        connection.get("remote.bin", "back.bin")
        assert Path("back.bin").read_bytes() == noise(300_000)


def serve_asyncssh(ready: Ready) -> None:
    import asyncssh

    class Rules(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == (USER, PASSWORD)

        def connection_requested(self, *addresses: object) -> bool:
            return True

    async def run(process: Any) -> None:
        fed = await process.stdin.read()
        process.stdout.write(digest(fed).encode())
        process.exit(4)

    async def main() -> None:
        Path("share").mkdir()
        async with await asyncssh.listen(
            HOST,
            0,
            server_factory=Rules,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            process_factory=run,
            encoding=None,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(Path("share").absolute()).encode()),
        ) as server:
            ready(server.get_port())
            await server.wait_closed()

    asyncio.run(main())


def use_asyncssh(port: int) -> None:
    """A command, SFTP, and a port forwarded through the same connection."""
    import asyncssh

    async def main() -> None:
        async with asyncssh.connect(
            HOST, port, username=USER, password=PASSWORD, known_hosts=None, client_keys=None, config=None
        ) as connection:
            ran = await connection.run("digest", input=noise(FILE_BYTES), encoding=None, timeout=20)
            assert (ran.stdout, ran.exit_status) == (digest(noise(FILE_BYTES)).encode(), 4)
            Path("local.bin").write_bytes(noise(FILE_BYTES))
            async with connection.start_sftp_client() as sftp:
                await sftp.put("local.bin", "remote.bin")
                assert [name for name in sorted(await sftp.listdir()) if not name.startswith(".")] == ["remote.bin"]
                await sftp.get("remote.bin", "back.bin")
            assert Path("back.bin").read_bytes() == noise(FILE_BYTES)
            # To the server's own door, by way of the server.
            forwarded = await connection.forward_local_port(HOST, 0, HOST, port)
            async with asyncssh.connect(
                HOST, forwarded.get_port(), username=USER, password=PASSWORD, known_hosts=None, client_keys=None
            ) as inner:
                ran = await inner.run("digest", input=b"inner", encoding=None, timeout=20)
                assert ran.stdout == digest(b"inner").encode()
            forwarded.close()

    asyncio.run(main())


SCENARIOS = [
    Scenario("paramiko", ("paramiko",), serve_paramiko, use_paramiko, connections=2, quick=True),
    Scenario("fabric", ("fabric", "paramiko"), serve_paramiko, use_fabric),
    Scenario("asyncssh", ("asyncssh",), serve_asyncssh, use_asyncssh, connections=3, quick=True),
]
