"""Socket conformance: every case runs on stdlib TCP and on utpsocket (fixture `net`, see conftest.py)."""
