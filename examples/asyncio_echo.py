"""asyncio streams over uTP, on the event loop as it is: a uTP socket has a real descriptor that it can wait for.

Run: python3 -m examples.asyncio_echo
"""

from __future__ import annotations

import asyncio

import utpsocket
from utpsocket import stats


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def say(address: tuple[str, int], words: str) -> str:
    sock = utpsocket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(words.encode() + b"\n")
    writer.write_eof()  # nothing more follows; the server closes when it has sent its answer
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode().strip()


async def serve_and_talk() -> None:
    server = await asyncio.start_server(echo, sock=utpsocket.create_server(("127.0.0.1", 0)))
    async with server:
        address = server.sockets[0].getsockname()
        # Many at once: they share one thread here, and one engine below.
        for answer in await asyncio.gather(*(say(address, f"hello {number}") for number in range(5))):
            print(answer)


def main() -> None:
    asyncio.run(serve_and_talk())
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


if __name__ == "__main__":
    main()
