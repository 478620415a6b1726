"""Directories, file shares, plants, queues and object stores: LDAP, SMB, OPC UA, kombu, MQTT's own broker, S3, SOAP."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from pathlib import Path
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, noise

LDIF = """\
dn: dc=example
objectClass: dcObject
dc: example

dn: ou=people,dc=example
objectClass: organizationalunit
ou: people

"""


def serve_ldap(ready: Ready) -> None:
    from ldaptor.inmemory import fromLDIFFile
    from ldaptor.interfaces import IConnectedLDAPEntry
    from ldaptor.protocols.ldap.ldapserver import LDAPServer
    from twisted.internet import reactor
    from twisted.internet.protocol import ServerFactory
    from twisted.python.components import registerAdapter

    class Factory(ServerFactory):
        protocol = LDAPServer
        root: Any = None

    people = [
        f"dn: cn=p{number},ou=people,dc=example\nobjectClass: person\ncn: p{number}\nsn: s{number % 7}\n"
        for number in range(200)
    ]
    registerAdapter(lambda factory: factory.root, Factory, IConnectedLDAPEntry)
    factory = Factory()

    def listen(root: Any) -> None:
        factory.root = root
        ready(reactor.listenTCP(0, factory, interface=HOST).getHost().port)

    fromLDIFFile(io.BytesIO((LDIF + "\n".join(people) + "\n").encode())).addCallback(listen)
    reactor.run()


def use_ldap(port: int) -> None:
    import ldap3

    with ldap3.Connection(ldap3.Server(HOST, port, get_info=ldap3.NONE), auto_bind=True) as connection:
        assert connection.search("ou=people,dc=example", "(sn=s3)", attributes=["cn"])
        assert len(connection.entries) == len(range(3, 200, 7))
        assert connection.add("cn=new,ou=people,dc=example", "person", {"sn": "added"})
        assert connection.search("dc=example", "(sn=added)", attributes=["cn"])
        assert connection.entries[0].entry_dn == "cn=new,ou=people,dc=example"
        assert connection.delete("cn=new,ou=people,dc=example")


def serve_smb(ready: Ready) -> None:
    from impacket.smbserver import SimpleSMBServer

    logging.disable(logging.CRITICAL)
    Path("share").mkdir()
    server: Any = SimpleSMBServer(listenAddress=HOST, listenPort=0)
    server.addShare("SHARE", str(Path("share").absolute()), "")
    server.setSMB2Support(True)
    ready(server.getServer().server_address[1])
    server.start()


def use_smb(port: int) -> None:
    from impacket.smbconnection import SMBConnection

    connection: Any = SMBConnection(HOST, HOST, sess_port=port, timeout=20)
    connection.login("", "")
    source = io.BytesIO(noise(1_000_000))
    connection.createDirectory("SHARE", "folder")
    connection.putFile("SHARE", "folder/file", source.read)
    names = {entry.get_longname() for entry in connection.listPath("SHARE", "folder/*")}
    assert "file" in names
    got = io.BytesIO()
    connection.getFile("SHARE", "folder/file", got.write)
    assert got.getvalue() == noise(1_000_000)
    connection.deleteFile("SHARE", "folder/file")
    connection.logoff()
    connection.close()


def serve_opcua(ready: Ready) -> None:
    from asyncua import Server, uamethod

    @uamethod
    def reverse(parent: Any, text: str) -> str:
        return text[::-1]

    async def main() -> None:
        server: Any = Server()
        await server.init()
        server.set_endpoint(f"opc.tcp://{HOST}:0/plant/")
        space = await server.register_namespace("http://plant.example")
        pump = await server.nodes.objects.add_object(space, "Pump")
        level = await pump.add_variable(space, "Level", 1.5)
        await level.set_writable()
        await pump.add_method(space, "reverse", reverse)
        async with server:
            ready(server.bserver._server.sockets[0].getsockname()[1])
            await asyncio.Event().wait()

    logging.disable(logging.CRITICAL)
    asyncio.run(main())


def use_opcua(port: int) -> None:
    from asyncua import Client

    logging.disable(logging.CRITICAL)

    async def main() -> None:
        async with Client(f"opc.tcp://{HOST}:{port}/plant/", timeout=15) as client:
            space = await client.get_namespace_index("http://plant.example")
            pump = await client.nodes.objects.get_child([f"{space}:Pump"])
            level = await pump.get_child([f"{space}:Level"])
            changes: asyncio.Queue[float] = asyncio.Queue()

            class Handler:
                def datachange_notification(self, node: Any, value: float, data: Any) -> None:
                    changes.put_nowait(value)

            subscription = await client.create_subscription(20, Handler())
            await subscription.subscribe_data_change(level)
            assert await asyncio.wait_for(changes.get(), 15) == 1.5
            await level.write_value(2.5)
            assert await asyncio.wait_for(changes.get(), 15) == 2.5
            text = noise(50_000).hex()
            assert await pump.call_method(f"{space}:reverse", text) == text[::-1]

    asyncio.run(main())


def serve_redis(ready: Ready) -> None:
    from fakeredis import TcpFakeServer

    server: Any = TcpFakeServer((HOST, 0))
    ready(server.server_address[1])
    server.serve_forever()


def use_kombu(port: int) -> None:
    """Messages through a queue kept in Redis, acknowledged one by one."""
    from kombu import Connection, Queue

    with Connection(f"redis://{HOST}:{port}/0") as connection:
        queue = Queue("work", routing_key="work")
        producer = connection.Producer()
        for number in range(30):
            body = {"number": number, "body": noise(2_000, number).hex()}
            producer.publish(body, routing_key="work", declare=[queue])
        got: list[Any] = []

        def take(body: Any, message: Any) -> None:
            got.append(body)
            message.ack()

        with connection.Consumer(queue, callbacks=[take]):
            while len(got) < 30:
                connection.drain_events(timeout=15)
    assert [body["number"] for body in got] == list(range(30))
    assert got[7]["body"] == noise(2_000, 7).hex()


def serve_s3(ready: Ready) -> None:
    from moto.server import ThreadedMotoServer

    logging.disable(logging.CRITICAL)
    server: Any = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    ready(server.get_host_and_port()[1])
    threading.Event().wait()


def use_s3(port: int) -> None:
    """A large object in parts, by several threads, and back."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    client: Any = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:{port}",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    client.create_bucket(Bucket="bucket")
    large = noise(12_000_000)
    config = TransferConfig(multipart_threshold=6_000_000, multipart_chunksize=6_000_000, max_concurrency=3)
    client.upload_fileobj(io.BytesIO(large), "bucket", "large", Config=config)
    got = io.BytesIO()
    client.download_fileobj("bucket", "large", got, Config=config)
    assert got.getvalue() == large
    listed = client.list_objects_v2(Bucket="bucket")["Contents"]
    assert [(each["Key"], each["Size"]) for each in listed] == [("large", len(large))]


WSDL = """\
<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/"
  xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:t="urn:shop" targetNamespace="urn:shop">
<types><xsd:schema targetNamespace="urn:shop" elementFormDefault="qualified">
<xsd:element name="Reverse"><xsd:complexType><xsd:sequence>
<xsd:element name="text" type="xsd:string"/></xsd:sequence></xsd:complexType></xsd:element>
<xsd:element name="Reversed"><xsd:complexType><xsd:sequence>
<xsd:element name="text" type="xsd:string"/></xsd:sequence></xsd:complexType></xsd:element></xsd:schema></types>
<message name="In"><part name="p" element="t:Reverse"/></message>
<message name="Out"><part name="p" element="t:Reversed"/></message>
<portType name="Shop"><operation name="Reverse"><input message="t:In"/><output message="t:Out"/></operation></portType>
<binding name="B" type="t:Shop"><soap:binding transport="http://schemas.xmlsoap.org/soap/http"/>
<operation name="Reverse"><soap:operation soapAction="urn:reverse"/>
<input><soap:body use="literal"/></input><output><soap:body use="literal"/></output></operation></binding>
<service name="S"><port name="P" binding="t:B"><soap:address location="{url}"/></port></service></definitions>
"""
ENVELOPE = """\
<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body>
<Reversed xmlns="urn:shop"><text>{text}</text></Reversed></e:Body></e:Envelope>
"""


def serve_soap(ready: Ready) -> None:
    import re

    from cheroot.wsgi import Server

    def application(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/xml")])
        if environ["REQUEST_METHOD"] == "GET":
            return [WSDL.format(url=f"http://{environ['HTTP_HOST']}/").encode()]
        posted = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
        (text,) = re.findall(r"<[^/>]*text>(.*?)</", posted)
        return [ENVELOPE.format(text=text[::-1]).encode()]

    server = Server((HOST, 0), application)
    server.prepare()
    ready(server.bind_addr[1])
    server.serve()


def use_soap(port: int) -> None:
    import zeep

    client = zeep.Client(f"http://{HOST}:{port}/?wsdl")
    for number in range(5):
        text = noise(20_000, number).hex()
        assert client.service.Reverse(text) == text[::-1]


SCENARIOS = [
    Scenario("ldap3", ("ldap3", "ldaptor", "twisted"), serve_ldap, use_ldap),
    Scenario("impacket-smb", ("impacket",), serve_smb, use_smb),
    Scenario("asyncua", ("asyncua",), serve_opcua, use_opcua),
    Scenario("kombu", ("kombu", "redis", "fakeredis"), serve_redis, use_kombu),
    Scenario("boto3", ("boto3", "moto[server,s3]"), serve_s3, use_s3, connections=2),
    Scenario("zeep", ("zeep", "cheroot"), serve_soap, use_soap),
]
