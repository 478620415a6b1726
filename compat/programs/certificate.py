"""A certificate for 127.0.0.1 in the scenario's working folder, where both sides find it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

AUTHORITY: Final = "authority.pem"
IDENTITY: Final = "identity.pem"


def issue() -> None:
    """Write the server's key and certificate, and the authority that vouches for it."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(AUTHORITY)
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(IDENTITY)


def server_context() -> ssl.SSLContext:
    """For a server, whose certificate is made on the way."""
    if not Path(IDENTITY).exists():
        issue()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(IDENTITY)
    return context


def client_context() -> ssl.SSLContext:
    """For a client that trusts that server and no other."""
    return ssl.create_default_context(cafile=AUTHORITY)
