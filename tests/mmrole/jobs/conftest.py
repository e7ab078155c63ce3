"""Fixtures of the tests of jobs."""

from fixtures.desk import desk

__all__ = ["desk"]
