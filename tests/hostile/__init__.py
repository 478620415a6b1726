"""What an attacker can do, as measured cases: `python3 -m tests.hostile [CASE…] [--json]`.

Each case has a budget and says what was measured. Traffic stays on 127.0.0.0/8 and ::1.
"""
