"""Disks that are full, and a small data set."""

from fixtures.worlds import on_small_disk, small_world
