"""The commands that build, check, describe and fetch MMRole-Data."""

import mmrole  # noqa: F401 (Ctrl-C while the rest is imported)
