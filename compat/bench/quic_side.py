"""One side of a measurement over aioquic: QUIC in Python, the nearest relative of what is measured here.

    PYTHON quic_side.py listen|connect SETTINGS

SETTINGS is JSON: `kind` ("bulk", "pingpong"), `port` to dial, `seconds`, `bytes` of a bulk transfer, `size` of a ping.
Runs in the virtual environment that has aioquic. See agreement.py for what it says and hears. One stream, datagrams of
1,400 bytes as everywhere in this bench; what aioquic does beside it, it cannot leave out: encryption.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import ssl
import sys
import time
from typing import Any

from agreement import Orders, Watch, emit
from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 64 << 10
WINDOW_BYTES = 16 << 20
PROTOCOL = "bench"


def configuration(*, is_client: bool) -> QuicConfiguration:
    settings = QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[PROTOCOL],
        max_datagram_size=1400,
        max_data=WINDOW_BYTES,
        max_stream_data=WINDOW_BYTES,
    )
    if is_client:
        settings.verify_mode = ssl.CERT_NONE
    else:
        settings.private_key = ec.generate_private_key(ec.SECP256R1())
        settings.certificate = self_signed(settings.private_key)
    return settings


def self_signed(key: Any) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    today = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), today - day, today + day
    )
    return builder.sign(key, hashes.SHA256())


async def listen(settings: dict[str, Any], orders: Orders) -> dict[str, Any]:
    first: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
        asyncio.get_running_loop().create_future()
    )
    server = await serve(
        LOOPBACK,
        0,
        configuration=configuration(is_client=False),
        stream_handler=lambda reader, writer: first.set_result((reader, writer)),
    )
    emit({"port": server._transport.get_extra_info("sockname")[1]})
    # A stream exists for its listener from its first byte on: one is sent before the clock starts.
    reader, writer = await first
    await reader.readexactly(1)
    emit({"ready": True})
    await asyncio.to_thread(orders.wait_for, "go")
    watch = Watch()
    received = 0
    if settings["kind"] == "bulk":
        while data := await reader.read(CHUNK_BYTES * 4):
            received += len(data)
    else:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
    return {**watch.stop(), "bytes": received}


async def dial(settings: dict[str, Any], orders: Orders) -> dict[str, Any]:
    async with connect(LOOPBACK, settings["port"], configuration=configuration(is_client=True)) as client:
        reader, writer = await client.create_stream()
        writer.write(b"!")
        emit({"ready": True})
        await asyncio.to_thread(orders.wait_for, "go")
        watch = Watch()
        if settings["kind"] == "bulk":
            # Its writer never pushes back: what it is given, it keeps. So the amount is fixed, not the time.
            chunk = os.urandom(CHUNK_BYTES)
            for _ in range(settings["bytes"] // CHUNK_BYTES):
                writer.write(chunk)
                await asyncio.sleep(0)
            writer.write_eof()
            await asyncio.to_thread(orders.wait_for, "stop")
            return watch.stop()
        ping = os.urandom(settings["size"])
        trips = []
        began = watch.started
        while began < watch.started + settings["seconds"]:
            writer.write(ping)
            await reader.readexactly(len(ping))
            now = time.monotonic()
            trips.append(now - began)
            began = now
        took = watch.stop()
        writer.write_eof()
        trips.sort()
        return {
            **took,
            "count": len(trips),
            "p50_us": trips[len(trips) // 2] * 1e6,
            "p99_us": trips[len(trips) * 99 // 100] * 1e6,
        }


async def main(role: str, settings_text: str) -> None:
    orders = Orders()
    settings = json.loads(settings_text)
    report = await (listen(settings, orders) if role == "listen" else dial(settings, orders))
    await asyncio.to_thread(orders.report, report)
    os._exit(0)  # nothing is left to say to the other side, which ends at the same moment


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
