"""The error of a checkpoint that cannot be used."""


class CheckpointError(RuntimeError):
    """A checkpoint directory is damaged, incomplete, or not a Qwen-VL; the message is one line with the remedy.

    Not a ValueError: transformers' auto classes catch those and fall back to guessing.
    """
