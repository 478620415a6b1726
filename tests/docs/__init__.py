"""The documents in utpsocket/docs: they build into a site, and what they say of the code is true."""
