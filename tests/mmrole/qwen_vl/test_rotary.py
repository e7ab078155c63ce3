"""Rotary positions, dynamic NTK and log-n factors as laws, apart from any model."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrole.qwen_vl.rotary import logn_factors, ntk_alpha, rotary_tables, rotate


def alpha(length: int, seq_length: int) -> int:
    return int(ntk_alpha(torch.tensor(length), seq_length))


@pytest.mark.parametrize("seq_length", [1, 7, 512, 2048, 3000])
def test_ntk_alpha_changes_only_after_powers_of_two_times_seq_length(seq_length):
    assert alpha(0, seq_length) == alpha(1, seq_length) == alpha(seq_length, seq_length) == 1
    for doublings in range(1, 12):
        boundary = seq_length * 2 ** (doublings - 1)
        assert alpha(boundary, seq_length) == 2**doublings - 1 or boundary == seq_length
        assert alpha(boundary + 1, seq_length) == 2 ** (doublings + 1) - 1
        assert alpha(2 * boundary, seq_length) == 2 ** (doublings + 1) - 1


def test_ntk_alpha_of_qwen_vl_chat():
    lengths = torch.tensor([[1, 2047, 2048], [2049, 4096, 4097], [8192, 8193, 16384]])
    assert ntk_alpha(lengths, 2048).tolist() == [[1, 1, 1], [3, 3, 7], [7, 15, 15]]


@given(length=st.integers(1, 10**6), seq_length=st.integers(1, 10**5))
def test_ntk_alpha_is_the_original_formula(length, seq_length):
    # max(2^ceil(log2(n / L) + 1) - 1, 1) with an exact logarithm: the least k with n <= 2^k L.
    ratio = Fraction(length, seq_length)
    exponent = next(k for k in range(-40, 40) if ratio <= Fraction(2) ** k)
    assert alpha(length, seq_length) == max(2 ** (exponent + 1) - 1, 1)
    # The original's own float formula, where its logarithm is not within rounding of an integer, or is one exactly.
    logarithm = math.log2(length / seq_length)
    if ratio == Fraction(2) ** exponent or abs(logarithm - round(logarithm)) > 1e-9:
        assert alpha(length, seq_length) == max(2 ** math.ceil(logarithm + 1) - 1, 1)


@given(
    positions=st.lists(st.integers(0, 20000), min_size=1, max_size=6),
    factor=st.sampled_from([1, 3, 7, 15]),
    channels=st.sampled_from([2, 4, 16, 128]),
    base=st.sampled_from([10000, 500.0]),
)
def test_rotary_tables_are_the_angles_of_the_formula(positions, factor, channels, base):
    cos, sin = rotary_tables(torch.tensor([positions]), torch.tensor([factor]), channels, base, torch.float64)
    scaled = base * factor ** (channels / (channels - 2)) if channels > 2 else base * factor
    for row, position in enumerate(positions):
        for j in range(channels // 2):
            angle = position * scaled ** (-2 * j / channels)
            for column, sign in ((j, -1), (j + channels // 2, 1)):
                assert math.isclose(float(cos[0, row, column]), math.cos(angle), abs_tol=1e-9)
                assert math.isclose(float(sin[0, row, column]), sign * math.sin(angle), abs_tol=1e-9)


def test_rotary_factors_of_rows_and_of_positions():
    positions = torch.arange(5)[None]
    rows = rotary_tables(positions, torch.tensor([1, 3]), 16, 10000, torch.float32)
    mixed = rotary_tables(positions, torch.tensor([[1, 1, 3, 3, 3]]), 16, 10000, torch.float32)
    for both, table in zip(rows, mixed, strict=True):
        assert both.shape == (2, 5, 16)
        torch.testing.assert_close(table[0, :2], both[0, :2], atol=0, rtol=0)
        torch.testing.assert_close(table[0, 2:], both[1, 2:], atol=0, rtol=0)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(1, 1, 1, 32, dtype=torch.float64, generator=generator) for _ in range(2))

    def score(query_position: int, key_position: int) -> float:
        at = [
            rotary_tables(torch.tensor([[position]]), torch.tensor([3]), 32, 10000, torch.float64)
            for position in (query_position, key_position)
        ]
        rotated = rotate(query, *at[0])
        assert math.isclose(float(rotated.norm()), float(query.norm()))
        return float((rotated * rotate(key, *at[1])).sum())

    assert math.isclose(score(7, 3), score(1007, 1003), rel_tol=1e-9)
    assert not math.isclose(score(7, 3), score(7, 4), rel_tol=1e-3)


def test_partial_rotation_leaves_the_other_channels():
    states = torch.randn(1, 2, 3, 8)
    rotated = rotate(states, *rotary_tables(torch.arange(3)[None], torch.tensor([1]), 4, 10000, torch.float32))
    assert torch.equal(rotated[..., 4:], states[..., 4:])
    assert torch.equal(rotated[:, :, 0], states[:, :, 0])
    assert not torch.equal(rotated[:, :, 1, :4], states[:, :, 1, :4])


@pytest.mark.parametrize("seq_length", [512, 2048])
def test_logn_factors_count_positions_from_one(seq_length):
    positions = torch.tensor([[0, seq_length - 2, seq_length - 1, seq_length, 2 * seq_length - 1, 10 * seq_length]])
    factors = logn_factors(positions, seq_length, torch.float64)[0].tolist()
    assert factors[:3] == [1.0, 1.0, 1.0]
    for factor, position in zip(factors[3:], positions[0, 3:].tolist(), strict=True):
        assert math.isclose(factor, math.log(position + 1) / math.log(seq_length), rel_tol=1e-12)


def test_logn_factors_have_no_longest_input_and_keep_the_rounding_of_bfloat16():
    assert math.isclose(float(logn_factors(torch.tensor([[99_999]]), 2048, torch.float32)), 1.50999, rel_tol=1e-4)
    # Steps of 1/128: exactly 1 up to about index 2,110 (spec §2.4).
    factors = logn_factors(torch.arange(2048, 2400)[None], 2048, torch.bfloat16)[0].float()
    assert set(factors.tolist()) == {1.0, 1 + 1 / 128, 1 + 2 / 128, 1 + 3 / 128} & set(factors.tolist())
    assert 2048 + int((factors == 1.0).sum()) in range(2100, 2125)
