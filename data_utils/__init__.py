"""MMRole-Data on disk: records, prompts, files, images and journals, and the commands that build and check the data."""

from mmrole.base.interruption import expect_interruption

expect_interruption()  # every script imports this package first, and what takes seconds after it
