"""The summed loss of the LM head against logits and torch's cross entropy."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmrole.qwen_vl import lm_head
from mmrole.qwen_vl.lm_head import LMHead, LossPositions

HIDDEN, VOCABULARY, POSITIONS, TARGETS = 16, 37, 50, 23


@pytest.fixture
def head() -> LMHead:
    torch.manual_seed(0)
    return LMHead(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64)


@pytest.fixture
def positions() -> LossPositions:
    generator = torch.Generator().manual_seed(1)
    return LossPositions(
        torch.randint(POSITIONS, (TARGETS,), generator=generator),  # a node can have several children
        torch.randint(VOCABULARY, (TARGETS,), generator=generator),
        torch.randint(1, 9, (TARGETS,), generator=generator),
    )


def expected_loss(head: LMHead, hidden: torch.Tensor, positions: LossPositions) -> torch.Tensor:
    logits = head(hidden)[positions.sources]
    return (cross_entropy(logits, positions.targets, reduction="none") * positions.weights).sum()


@pytest.mark.parametrize("rows", [1, 7, TARGETS, 1000])
def test_loss_and_gradients(head, positions, monkeypatch, rows, gradients):
    monkeypatch.setattr(lm_head, "_LOGITS_AT_A_TIME", rows * VOCABULARY)
    hidden = torch.randn(POSITIONS, HIDDEN, dtype=torch.float64, requires_grad=True)
    found = head(hidden, positions) / 3
    expected = expected_loss(head, hidden, positions) / 3
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    inputs = (hidden, head.weight)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_gradients_by_finite_differences(head, positions, gradients):
    hidden = torch.randn(POSITIONS, HIDDEN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: head(states, positions), hidden)


def test_no_more_logits_than_one_chunk_exist(head, positions, monkeypatch, gradients):
    monkeypatch.setattr(lm_head, "_LOGITS_AT_A_TIME", 5 * VOCABULARY)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        head(torch.randn(POSITIONS, HIDDEN, dtype=torch.float64, requires_grad=True), positions)
    assert all(shape != (TARGETS, VOCABULARY) and shape[-1:] != (VOCABULARY,) for shape in kept)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_summed_in_float32(head, positions, autocast, gradients):
    hidden = torch.randn(POSITIONS, HIDDEN).bfloat16().requires_grad_()
    head = head.to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = head(hidden, positions)
    assert found.dtype == torch.float32
    wide = LMHead(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64)
    with torch.no_grad():
        wide.weight.copy_(head.weight)
    expected = float(expected_loss(wide, hidden.detach().double(), positions).detach())
    assert abs(float(found.detach()) - expected) < 1e-5 * expected
    found.backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert head.weight.grad.dtype == head.weight.dtype


def test_no_loss_positions(head, gradients):
    nothing = torch.zeros(0, dtype=torch.int64)
    hidden = torch.randn(POSITIONS, HIDDEN, dtype=torch.float64, requires_grad=True)
    loss = head(hidden, LossPositions(nothing, nothing, nothing))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not hidden.grad.any()
    assert not head.weight.grad.any()
