"""A small data set."""

from fixtures.worlds import small_world
