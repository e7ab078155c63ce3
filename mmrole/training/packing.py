"""Which samples make an optimizer step, which of them share a tree, and which process computes what."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from mmrole.prompt_tree.sequences import sort_by_prefix
from mmrole.training.encoding import EncodedSample

# Less in common is not worth a tree: samples that share only a system message stay shuffled.
MIN_SHARED = 256
# A still is talked about in up to 180 samples, which teach less together than apart. Groups are cut into parts of at
# most this share of a step, which are shuffled: in steps of 256 samples the trees save 6 % less than uncut ones would.
GROUPS_PER_STEP = 16
# Smaller trees repeat prefixes and images, so they must leave processes waiting for clearly less time.
WORTH_CUTTING = 0.97
# The largest trees that are tried, in shares of an even bin.
CUTS = (1e9, 1.5, 1.25, 1.1, 1.0, 0.5, 0.25)

Bin = list[int]
"""The samples of one micro-batch, merged into trees where they share a prefix; empty where a process has none left."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Samples by shared prefix and image; a group can be cut anywhere into trees.

    Attributes:
        members: [groups] the samples of each group, neighbours sharing the longest prefixes.
        lengths: [samples] positions of each sample.
        shared: [samples] leading positions in common with the sample before it in its group, 0 for the first.
        prompt_tree: false: every sample is a group of its own, and micro-batches hold samples of like length.
    """

    members: list[list[int]]
    lengths: np.ndarray
    shared: np.ndarray
    prompt_tree: bool


class Step(NamedTuple):
    """One optimizer step.

    Attributes:
        samples: all of its samples; they do not depend on the number of processes.
        bins: `bins[rank][micro_batch]`, as many for each rank. Together they hold each sample of the step once.
    """

    samples: list[int]
    bins: list[list[Bin]]


class _Piece(NamedTuple):
    """Samples that become one tree, and its number of nodes."""

    samples: list[int]
    nodes: int


def group_samples(samples: Sequence[EncodedSample], prompt_tree: bool = True) -> Groups:
    """Groups samples whose first positions are the same: the same image and the same text before it.

    Ids play no part. Done once for a data set; `pack_epoch` orders the groups anew for each epoch.

    Args:
        samples: the data set.
        prompt_tree: false: every sample is a group of its own.
    """
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    shared = np.zeros(len(samples), dtype=np.int64)
    if not prompt_tree:
        return Groups([[index] for index in range(len(samples))], lengths, shared, False)
    beginnings: dict[Hashable, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        beginnings[_beginning(sample) or index].append(index)
    members = []
    for group in beginnings.values():
        places = sort_by_prefix([samples[index].sequence() for index in group])
        ordered = [group[place] for place in places.order]
        shared[ordered] = places.shared
        members.append(ordered)
    shared[[group[0] for group in members]] = 0
    return Groups(members, lengths, shared, True)


def _beginning(sample: EncodedSample) -> Hashable | None:
    """Equal where the first `MIN_SHARED` positions are the same; None for a shorter sample."""
    if len(sample) < MIN_SHARED:
        return None
    images = tuple(image[:2] for image in sample.images if image.spans[0][0] < MIN_SHARED)
    return sample.input_ids[:MIN_SHARED].tobytes(), images


def pack_epoch(
    groups: Groups,
    *,
    samples_per_step: int,
    world_size: int,
    max_batch_tokens: int,
    seed: int,
    epoch: int,
    alone: bool = False,
) -> list[Step]:
    """The steps of an epoch: a function of the arguments alone.

    Groups are shuffled, then cut into steps of exactly `samples_per_step` samples (the last one has what is left), so a
    step holds the same samples for any number of processes.

    Args:
        groups: of the data set.
        samples_per_step: global batch size.
        world_size: number of processes.
        max_batch_tokens: most positions of a micro-batch, counted after merging.
        seed: with `epoch` seeds the order.
        epoch: from 0.
        alone: a micro-batch is one sample.

    Raises:
        ValueError: a sample has more than `max_batch_tokens` positions.
    """
    if groups.lengths.max() > max_batch_tokens:
        raise ValueError(
            f"a sample has {groups.lengths.max()} positions, more than max_batch_tokens={max_batch_tokens}"
        )
    pack = partial(_one_by_one, groups) if alone else partial(_pack_step, groups, max_batch_tokens=max_batch_tokens)
    most = max(1, samples_per_step // GROUPS_PER_STEP)
    chunks = [group[start : start + most] for group in groups.members for start in range(0, len(group), most)]
    steps, parts, missing = [], [], samples_per_step
    for chunk in np.random.default_rng([seed, epoch]).permutation(len(chunks)):
        members = chunks[chunk]
        while members:
            parts.append(members[:missing])
            members = members[missing:]
            missing -= len(parts[-1])
            if missing == 0:
                steps.append(pack(parts, world_size))
                parts, missing = [], samples_per_step
    if parts:
        steps.append(pack(parts, world_size))
    return steps


def _pack_step(groups: Groups, parts: list[list[int]], world_size: int, max_batch_tokens: int) -> Step:
    """Cuts the parts of groups into trees, and deals the trees to bins of about the same size."""
    whole = [piece for part in parts for piece in _cut(groups, part, max_batch_tokens)]
    rounds = -(-sum(piece.nodes for piece in whole) // (max_batch_tokens * world_size))
    best: list[list[_Piece]] = []
    while not best:
        n_bins = rounds * world_size
        target = -(-sum(piece.nodes for piece in whole) // n_bins)
        # Few large trees cannot be dealt evenly: smaller trees read a prefix twice, but nobody waits for the largest.
        for share in CUTS:
            most = min(int(share * target), max_batch_tokens)
            pieces = [piece for part in parts for piece in _cut(groups, part, most)]
            bins = _deal(pieces, n_bins) if groups.prompt_tree else _deal_by_length(pieces, n_bins)
            fits = _load(bins[0]) <= max_batch_tokens
            if fits and (not best or _cost(bins, world_size) < WORTH_CUTTING * _cost(best, world_size)):
                best = bins
        rounds += 1
    dealt = [[sample for piece in bin_ for sample in piece.samples] for bin_ in best]
    samples = [sample for part in parts for sample in part]
    return Step(samples, [dealt[rank::world_size] for rank in range(world_size)])


def _one_by_one(groups: Groups, parts: list[list[int]], world_size: int) -> Step:
    """Deals samples one by one, the longest first; the last round has empty bins where processes have none left."""
    samples = [sample for part in parts for sample in part]
    bins = [[sample] for sample in sorted(samples, key=lambda sample: -groups.lengths[sample])]
    bins += [[] for _ in range(-len(bins) % world_size)]
    return Step(samples, [bins[rank::world_size] for rank in range(world_size)])


def _cut(groups: Groups, members: list[int], most: int) -> list[_Piece]:
    """Cuts neighbours of a group into trees of at most `most` nodes; a sample that is longer is alone."""
    pieces: list[_Piece] = []
    chosen: list[int] = []
    nodes = 0
    for sample in members:
        new = int(groups.lengths[sample] - groups.shared[sample])
        if chosen and nodes + new > most:
            pieces.append(_Piece(chosen, nodes))
            chosen = []
        if not chosen:
            nodes, new = 0, int(groups.lengths[sample])
        chosen.append(sample)
        nodes += new
    return [*pieces, _Piece(chosen, nodes)]


def _deal(pieces: list[_Piece], n_bins: int) -> list[list[_Piece]]:
    """Deals trees to bins, the largest first and always to the emptiest; the fullest bin first, empty ones last."""
    bins: list[list[_Piece]] = [[] for _ in range(n_bins)]
    emptiest = [(0, index) for index in range(n_bins)]
    for piece in sorted(pieces, key=lambda piece: -piece.nodes):
        load, index = heapq.heappop(emptiest)
        bins[index].append(piece)
        heapq.heappush(emptiest, (load + piece.nodes, index))
    return sorted(bins, key=_load, reverse=True)


def _deal_by_length(pieces: list[_Piece], n_bins: int) -> list[list[_Piece]]:
    """Deals trees to bins by length, each bin a run of about equal size; the fullest bin first, empty ones last."""
    bins: list[list[_Piece]] = [[] for _ in range(n_bins)]
    ordered = sorted(pieces, key=lambda piece: piece.nodes)
    total = sum(piece.nodes for piece in pieces)
    before = 0
    for piece in ordered:
        bins[(2 * before + piece.nodes) * n_bins // (2 * total)].append(piece)  # where the piece's middle falls
        before += piece.nodes
    return sorted(bins, key=_load, reverse=True)


def _load(bin_: list[_Piece]) -> int:
    return sum(piece.nodes for piece in bin_)


def _cost(bins: list[list[_Piece]], world_size: int) -> int:
    """Nodes that the slowest process of each round computes: the others wait for it."""
    return sum(_load(bin_) for bin_ in bins[::world_size])
