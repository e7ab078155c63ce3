"""Fixtures of the tests of servers' models."""

from fixtures.desk import desk
from fixtures.office import office
from fixtures.servers import server

__all__ = ["desk", "office", "server"]
