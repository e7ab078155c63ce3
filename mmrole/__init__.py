"""The library behind the scripts: Qwen-VL, prompt trees, engine, training, scoring."""

import logging

from mmrole.base.interruption import expect_interruption

expect_interruption()  # every script imports this package first, and what takes seconds after it

# Where it is installed, peft and accelerate import it, and on some CPUs it then complains of a missing package that
# would download compiled code.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
