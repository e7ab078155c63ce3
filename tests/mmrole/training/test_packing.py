"""Laws of the packing: every sample once, steps of the recipe's size, the same for any number of processes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.prompt_tree import build_tree
from mmrole.training.encoding import EncodedSample, ImageRows
from mmrole.training.packing import GROUPS_PER_STEP, MIN_SHARED, Groups, group_samples, pack_epoch


def sample(ids: list[int], image: int | None = None) -> EncodedSample:
    rows = () if image is None else (ImageRows(((1, 257),), image, Path(str(image))),)
    ids = np.array(ids, dtype=np.int32)
    if image is not None:
        ids[1:257] = 9
    return EncodedSample(ids, np.ones(ids.size, dtype=bool), rows, False)


@st.composite
def data_sets(draw: st.DrawFn) -> list[EncodedSample]:
    """Dialogues whose samples extend one another, about few images or none, and short samples that share nothing."""
    samples = []
    for number in range(draw(st.integers(1, 6))):
        image = draw(st.sampled_from([None, 0, 1]))
        ids = [1] * draw(st.sampled_from([258, 300, 400])) + [2 + number % 3]
        for turn in range(draw(st.integers(1, 12))):
            ids = ids + [turn % 7] * draw(st.integers(1, 60))
            samples.append(sample(ids, image))
    samples += [sample([number, 5, 5]) for number in range(draw(st.integers(0, 4)))]
    return [samples[place] for place in draw(st.permutations(range(len(samples))))]


PACKINGS = {
    "samples_per_step": st.integers(1, 40),
    "world_size": st.integers(1, 5),
    "max_batch_tokens": st.sampled_from([1200, 2000, 10_000]),
    "seed": st.integers(0, 3),
    "epoch": st.integers(0, 3),
}


@given(samples=data_sets(), prompt_tree=st.booleans(), packing=st.fixed_dictionaries(PACKINGS))
def test_steps_and_bins(samples, prompt_tree, packing):
    groups = group_samples(samples, prompt_tree)
    steps = pack_epoch(groups, **packing)
    size = packing["samples_per_step"]
    assert sorted(index for step in steps for index in step.samples) == list(range(len(samples)))
    assert [len(step.samples) for step in steps[:-1]] == [size] * (len(steps) - 1)
    assert len(steps) == -(-len(samples) // size)
    for step in steps:
        assert sorted(index for rank in step.bins for bin_ in rank for index in bin_) == sorted(step.samples)
        assert len(step.bins) == packing["world_size"]
        assert len({len(rank) for rank in step.bins}) == 1
        for bin_ in (bin_ for rank in step.bins for bin_ in rank if bin_):
            chosen = [samples[index].sequence() for index in bin_]
            nodes = len(build_tree(chosen)) if prompt_tree else sum(map(len, chosen))
            assert nodes <= packing["max_batch_tokens"]
    assert pack_epoch(groups, **packing) == steps
    alone = pack_epoch(groups, **packing | {"world_size": 1})
    assert [step.samples for step in alone] == [step.samples for step in steps]


@given(samples=data_sets(), packing=st.fixed_dictionaries(PACKINGS))
def test_samples_that_are_read_alone(samples, packing):
    groups = group_samples(samples, prompt_tree=False)
    packing |= {"max_batch_tokens": 10_000}
    for step, other in zip(pack_epoch(groups, **packing, alone=True), pack_epoch(groups, **packing), strict=True):
        assert step.samples == other.samples
        assert sorted(index for rank in step.bins for bin_ in rank for index in bin_) == sorted(step.samples)
        assert all(len(bin_) <= 1 for rank in step.bins for bin_ in rank)
        assert {len(rank) for rank in step.bins} == {-(-len(step.samples) // packing["world_size"])}


@given(samples=data_sets())
def test_groups_are_those_of_equal_beginnings(samples):
    groups = group_samples(samples)
    codes = [(s.input_ids[:MIN_SHARED].tolist(), [image[:3] for image in s.images]) for s in samples]
    for members in groups.members:
        assert len({str(codes[index]) for index in members}) == 1
        assert len(members) == 1 or min(len(samples[index]) for index in members) >= MIN_SHARED
        tree = build_tree([samples[index].sequence() for index in members])
        assert len(tree) == (groups.lengths[members] - groups.shared[members]).sum()
    long = [members for members in groups.members if len(samples[members[0]]) >= MIN_SHARED]
    assert len({str(codes[members[0]]) for members in long}) == len(long), "no two groups have one beginning"


def test_no_group_fills_a_step():
    """Sixty groups of fifty in steps of 64: chunks of four, nearly all of different groups."""
    order = np.arange(3000).reshape(60, 50)
    groups = Groups(order.tolist(), np.full(3000, 300), np.where(np.arange(3000) % 50, 280, 0), True)
    steps = pack_epoch(groups, samples_per_step=64, world_size=1, max_batch_tokens=8192, seed=0, epoch=0)
    assert min(len({index // 50 for index in step.samples}) for step in steps[:-1]) > GROUPS_PER_STEP / 2
    small = pack_epoch(groups, samples_per_step=8, world_size=1, max_batch_tokens=8192, seed=0, epoch=0)
    assert np.mean([len({index // 50 for index in step.samples}) for step in small]) > 7


def test_the_order_is_that_of_seed_and_epoch():
    groups = Groups([[index] for index in range(50)], np.full(50, 10), np.zeros(50, dtype=int), True)
    packing = {"samples_per_step": 10, "world_size": 1, "max_batch_tokens": 100}
    orders = [
        [index for step in pack_epoch(groups, **packing, seed=seed, epoch=epoch) for index in step.samples]
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9
    assert all(order != sorted(order) for order in orders)


def test_bins_are_balanced():
    """Forty dialogues on eight processes: the slowest of each round has little more than the mean."""
    rng = np.random.default_rng(0)
    samples = []
    for dialogue in range(40):
        ids = [1] * 300 + [dialogue] * int(rng.integers(200, 600))
        for turn in range(7):
            ids = ids + [turn] * int(rng.integers(20, 120))
            samples.append(sample(ids, dialogue))
    groups = group_samples(samples)
    for step in pack_epoch(groups, samples_per_step=280, world_size=8, max_batch_tokens=8192, seed=0, epoch=0):
        loads = np.array(
            [[len(build_tree([samples[i].sequence() for i in bin_])) for bin_ in rank] for rank in step.bins]
        )
        assert loads.max(axis=0).sum() < 1.1 * loads.mean(axis=0).sum()


def test_one_large_tree_is_cut_for_several_processes():
    samples = [sample([1] * 300 + [turn] * 200) for turn in range(24)]
    (step,) = pack_epoch(
        group_samples(samples), samples_per_step=24, world_size=4, max_batch_tokens=10_000, seed=0, epoch=0
    )
    assert [[len(bin_) for bin_ in rank] for rank in step.bins] == [[6]] * 4


def test_single_samples_are_grouped_by_length():
    rng = np.random.default_rng(0)
    samples = [sample([int(n)] * int(n)) for n in rng.integers(100, 1000, 64)]
    (step,) = pack_epoch(
        group_samples(samples, False), samples_per_step=64, world_size=2, max_batch_tokens=4000, seed=0, epoch=0
    )
    ranges = sorted(
        (min(lengths), max(lengths))
        for lengths in ([len(samples[i]) for i in bin_] for rank in step.bins for bin_ in rank if bin_)
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))


def test_fewer_trees_than_processes_leave_empty_bins():
    groups = group_samples([sample([1, 2, 3])])
    (step,) = pack_epoch(groups, samples_per_step=8, world_size=3, max_batch_tokens=10, seed=0, epoch=0)
    assert step.bins == [[[0]], [[]], [[]]]


def test_a_sample_longer_than_a_bin_is_refused():
    with pytest.raises(ValueError, match="3 positions, more than max_batch_tokens=2"):
        pack_epoch(
            group_samples([sample([1, 2, 3])]), samples_per_step=1, world_size=1, max_batch_tokens=2, seed=0, epoch=0
        )
