"""The library behind the scripts: Qwen-VL, prompt trees, generation, training, scoring."""

import logging

import data_utils  # noqa: F401 (Ctrl-C while the rest is imported)

# Where it is installed, peft and accelerate import it, and on some CPUs it then complains of a missing package that
# would download compiled code.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
