"""A plugin for pytest: what tornado's own runner sets before its tests, some of which want nothing to be logged."""

from __future__ import annotations

import logging

logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
