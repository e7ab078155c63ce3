"""The LM head, and its cross entropy at chosen positions without the logits of all of them at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrole.qwen_vl.rotary import at_least_float32

# Logits that exist at a time: 1,024 positions of Qwen's vocabulary are 0.6 GB in float32, and a product this large
# already runs at full rate.
_LOGITS_AT_A_TIME = 1024 * 151_936


class LossPositions(NamedTuple):
    """Where the loss is in a batch whose hidden states [batch, positions, hidden_size] are laid end to end.

    Attributes:
        sources: int64 [n], indices of hidden states.
        targets: int64 [n], the token that each of them is to predict.
        weights: [n], how often each counts.
    """

    sources: Tensor
    targets: Tensor
    weights: Tensor


class LMHead(nn.Linear):
    """Hidden states to logits, or to their summed loss.

    One module call for all chunks of a batch: what gathers parameters around calls (ZeRO-3, FSDP) gathers them once,
    and as often on a process with much loss as on one with none.
    """

    # Called by position, as a Linear is.
    def forward(self, hidden_states: Tensor, loss_positions: LossPositions | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[..., hidden_size] → logits [..., vocabulary]; with `loss_positions`, [n, hidden_size] → summed loss [].

        The loss is the sum of weight * cross entropy, in at least float32: so are the logits that it is made of.
        """
        if loss_positions is None:
            return super().forward(hidden_states)
        chosen = hidden_states[loss_positions.sources]
        return _SummedLoss.apply(chosen, self.weight, loss_positions.targets, loss_positions.weights)


class _SummedLoss(torch.autograd.Function):
    """Σ weight * cross entropy; the logits are computed in chunks, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        wide = at_least_float32(hidden.dtype)
        counts = counts.to(wide)
        loss = hidden.new_zeros((), dtype=wide)
        log_sums = []
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(hidden, weight):
                logits = _logits(hidden[rows], weight)
                log_sums.append(logits.logsumexp(-1))
                at_target = logits.gather(-1, targets[rows, None])[:, 0]
                loss += (log_sums[-1] - at_target) @ counts[rows]
        log_sums = torch.cat([hidden.new_empty(0, dtype=wide), *log_sums])
        ctx.save_for_backward(hidden, weight, targets, counts, log_sums)
        return loss

    @staticmethod
    @once_differentiable
    # torch declares any number of gradients; there is one, as there is one output.
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, targets, counts, log_sums = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight) if wants_weight else None
        scales = counts * gradient
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(hidden, weight):
                # d loss / d logits = count * (softmax - one at the target), in the place of the logits
                slopes = _logits(hidden[rows], weight).sub_(log_sums[rows, None]).exp_()
                slopes[torch.arange(len(slopes), device=slopes.device), targets[rows]] -= 1
                slopes = slopes.mul_(scales[rows, None]).to(weight.dtype)
                if hidden_gradient is not None:
                    hidden_gradient[rows] = (slopes @ weight).to(hidden.dtype)
                if weight_gradient is not None:
                    weight_gradient.addmm_(slopes.T, hidden[rows].to(weight.dtype))
        return hidden_gradient, weight_gradient, None, None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    step = max(1, _LOGITS_AT_A_TIME // len(weight))
    return [slice(start, start + step) for start in range(0, len(hidden), step)]


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """[n, hidden_size] and [vocabulary, hidden_size] → [n, vocabulary], summed and kept in at least float32."""
    wide = at_least_float32(hidden.dtype)
    if hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype != wide:
        return torch.mm(hidden, weight.T, out_dtype=wide)
    return hidden.to(wide) @ weight.to(wide).T
