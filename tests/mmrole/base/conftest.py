"""Disks that are full."""

from fixtures.worlds import on_small_disk
