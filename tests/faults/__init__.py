"""Faults on purpose: one exception or errno at each call, and what must still be true after it."""
