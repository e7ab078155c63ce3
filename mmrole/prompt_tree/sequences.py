"""Token sequences with image identity, and the order that puts shared prefixes side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

TEXT = -1
"""Image key of a position that holds text."""

_FIRST_IMAGE_CODE = 2**31


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sample or request: token ids, which image each position shows, and which positions are learned.

    Array-likes are converted to arrays; an integer dtype is kept as given.

    Attributes:
        input_ids: [length] token ids, 0 <= id < 2**31.
        image_keys: [length] -1 for text, elsewhere a number that names the image *and* the row of its features, for
            example `image_index * 256 + row`. Two sequences share an image position only if id and key are equal, so a
            key must mean the same row in all sequences that are merged. None: all text.
        targets: [length] bool, true where the token itself is a loss position (labels before the shift). The first
            position is never predicted, whatever stands here. None: no loss positions.

    Raises:
        ValueError: an array is empty, not one-dimensional, of another length or dtype, or holds a number out of range.
    """

    input_ids: np.ndarray
    image_keys: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __post_init__(self) -> None:
        input_ids = np.asarray(self.input_ids)
        if input_ids.size == 0:
            raise ValueError("a sequence needs at least one token, this one is empty")
        if input_ids.ndim != 1 or input_ids.dtype.kind not in "iu":
            raise ValueError(f"input_ids must be integers [length], not {input_ids.dtype} {list(input_ids.shape)}")
        if input_ids.min() < 0 or input_ids.max() >= _FIRST_IMAGE_CODE:
            raise ValueError(f"token ids must be in [0, 2**31), found {input_ids.min()} to {input_ids.max()}")
        object.__setattr__(self, "input_ids", input_ids)
        if self.image_keys is not None:
            image_keys = _aligned("image_keys", self.image_keys, input_ids.size, "i")
            if image_keys.min() < TEXT:
                raise ValueError(f"image keys must be {TEXT} (text) or at least 0, found {image_keys.min()}")
            object.__setattr__(self, "image_keys", image_keys)
        if self.targets is not None:
            object.__setattr__(self, "targets", _aligned("targets", self.targets, input_ids.size, "b"))

    def __len__(self) -> int:
        return self.input_ids.size


def _aligned(name: str, values: ArrayLike, length: int, kinds: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (length,) or array.dtype.kind not in kinds:
        wanted = "bool" if kinds == "b" else "signed integers"
        raise ValueError(f"{name} must be {wanted} [{length}] like input_ids, not {array.dtype} {list(array.shape)}")
    return array


class PrefixOrder(NamedTuple):
    """Sequences in lexicographic order (token id; text before images, images by key; a prefix before what extends it).

    `order` [S] holds indices into the given sequences, equal ones in the order given; `shared` [S] the number of
    leading positions that the sequence has in common with the one before it in this order (0 for the first).
    """

    order: np.ndarray
    shared: np.ndarray


def sort_by_prefix(sequences: Sequence[TokenSequence]) -> PrefixOrder:
    """Orders sequences so that all that share a prefix stand next to each other."""
    codes = _position_codes(sequences)
    # Big-endian bytes compare like the numbers, at the speed of memcmp.
    order = sorted(range(len(codes)), key=lambda index: codes[index].astype(">u4").tobytes())
    shared = [0] * len(order)
    for place in range(1, len(order)):
        shared[place] = _common_prefix(codes[order[place - 1]], codes[order[place]])
    return PrefixOrder(np.array(order, dtype=np.int64), np.array(shared, dtype=np.int64))


def group_by_prefix(sequences: Sequence[TokenSequence], min_shared: int) -> list[list[int]]:
    """Groups the sequences whose first `min_shared` positions are the same; a shorter sequence is alone.

    Returns indices into `sequences`: groups by their first member, members in lexicographic order, so that a group
    which is too large for one tree can be cut anywhere and neighbours still share the longest prefixes.

    Raises:
        ValueError: `min_shared` is below 1.
    """
    if min_shared < 1:
        raise ValueError(f"min_shared must be at least 1, not {min_shared}")
    order, shared = sort_by_prefix(sequences)
    borders = np.flatnonzero(shared < min_shared)[1:]
    return sorted((group.tolist() for group in np.split(order, borders) if group.size), key=min)


def _position_codes(sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
    """One uint32 [length] array a sequence: equal codes exactly where token id and image key are equal."""
    if not sequences:
        return []
    stops = np.cumsum([len(sequence) for sequence in sequences])
    codes = np.concatenate([sequence.input_ids for sequence in sequences], dtype=np.uint32, casting="unsafe")
    image_positions, image_keys = [], []
    for sequence, stop in zip(sequences, stops, strict=True):
        if sequence.image_keys is not None:
            positions = np.flatnonzero(sequence.image_keys != TEXT)
            image_positions.append(positions + (stop - len(sequence)))
            image_keys.append(sequence.image_keys[positions])
    if image_positions:
        places = np.concatenate(image_positions)
        codes[places] = _FIRST_IMAGE_CODE + _dense_ranks(codes[places], np.concatenate(image_keys))
    return np.split(codes, stops[:-1])


def _dense_ranks(minor: np.ndarray, major: np.ndarray) -> np.ndarray:
    """Ranks 0, 1, … of the pairs (major, minor), equal pairs alike; [n] int64."""
    order = np.lexsort((minor, major))
    steps = (np.diff(major[order]) != 0) | (np.diff(minor[order]) != 0)
    ranks = np.zeros(len(order), dtype=np.int64)
    ranks[order[1:]] = np.cumsum(steps)
    return ranks


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(a.size, b.size)
    differs = a[:length] != b[:length]
    first = int(differs.argmax())
    return first if differs[first] else length
