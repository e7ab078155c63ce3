"""Trees that are decoded together: prefill, steps, and the room that finished leaves give back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmrole.engine.images import ImageFeatures
from mmrole.engine.planning import PlannedTree, Prompt
from mmrole.engine.sampling import choose_tokens
from mmrole.engine.tree_memory import TreeMemory
from mmrole.prompt_tree.mask import ancestor_rows
from mmrole.qwen_vl import QWenLMHeadModel

# Rebuilding the memory copies it once, about the cost of a step: worth it when so many leaves have finished.
REBUILD_SHARE = 0.25


@dataclass(eq=False)
class Leaf:
    """A reply in the making: the tokens chosen so far, without the stop token."""

    prompt: Prompt
    stream: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False
    seen: list[int] = field(default_factory=list)
    """Tokens of prompt and reply, each once, where a setting looks back."""

    @classmethod
    def of(cls, prompt: Prompt) -> Leaf:
        """A reply without tokens."""
        looks_back = prompt.settings.repetition_penalty != 1
        seen = np.unique(prompt.sequence.input_ids).tolist() if looks_back else []
        return cls(prompt, prompt.request.random_stream(), seen=seen)

    @property
    def remaining(self) -> int:
        """Most tokens that are still to be generated."""
        return 0 if self.stopped else self.prompt.settings.max_new_tokens - len(self.tokens)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to generate."""
        return self.remaining <= 0


@dataclass(eq=False)
class Row:
    """A tree in the batch; the place of a leaf in the list is its column in the memory."""

    planned: PlannedTree
    leaves: list[Leaf]

    @property
    def open_leaves(self) -> list[int]:
        """Columns of the leaves that go on."""
        return [column for column, leaf in enumerate(self.leaves) if not leaf.finished]

    @property
    def positions(self) -> int:
        """Slots that the row may come to hold."""
        return len(self.planned.tree) + sum(self.leaves[i].prompt.settings.max_new_tokens for i in self.open_leaves)


class Batch:
    """Decodes the leaves of several trees in step.

    Attributes:
        rows: the trees that take part in the next step.
        finished: leaves that are complete; the owner of the batch takes them out.
    """

    def __init__(self, model: QWenLMHeadModel, images: ImageFeatures, stop_ids: frozenset[int]) -> None:
        self.model = model
        self.images = images
        self.stop_ids = stop_ids
        self.rows: list[Row] = []
        self.finished: list[Leaf] = []
        self.memory = TreeMemory(model)

    @property
    def needs_rebuild(self) -> bool:
        """Whether the memory is full or many of its leaves have finished (always true of an empty batch)."""
        if self.memory.is_full:
            return True
        leaves = sum(len(row.leaves) for row in self.rows)
        return sum(len(row.open_leaves) for row in self.rows) <= (1 - REBUILD_SHARE) * leaves

    def rebuild(self, waiting: deque[PlannedTree], max_tokens: int) -> list[PlannedTree]:
        """Frees what finished leaves held and makes room for waiting trees, which are to be prefilled in this order.

        Args:
            waiting: trees in the order in which they are to be taken; taken ones are removed.
            max_tokens: slots that all rows may come to hold. A single tree is always taken.
        """
        keep = [(place, row.open_leaves) for place, row in enumerate(self.rows) if row.open_leaves]
        self.rows = [Row(self.rows[place].planned, [self.rows[place].leaves[i] for i in kept]) for place, kept in keep]
        taken = sum(row.positions for row in self.rows)
        entering = []
        while waiting and (not self.rows or taken + waiting[0].positions <= max_tokens):
            planned = waiting.popleft()
            taken += planned.positions
            entering.append(planned)
            self.rows.append(Row(planned, [Leaf.of(prompt) for prompt in planned.prompts]))
        device = self.model.device
        masks = [
            ancestor_rows(*(torch.from_numpy(nodes).to(device) for nodes in (planned.tree.last, planned.tree.leaf)))
            for planned in entering
        ]
        steps = max((leaf.remaining for row in self.rows for leaf in row.leaves), default=0)
        order = self.memory.rebuild(keep, masks, steps)
        self.rows = [self.rows[index] for index in order]
        return entering

    def prefill(self, planned: PlannedTree) -> None:
        """Reads a tree of the batch in one pass and chooses the first token of each of its leaves."""
        place = next(place for place, row in enumerate(self.rows) if row.planned is planned)
        tree, device = planned.tree, self.model.device
        embeddings = self.model.get_input_embeddings()(torch.from_numpy(tree.input_ids).to(device))[None]
        shows_image = np.flatnonzero(tree.image_keys >= 0)
        if shows_image.size:
            features = self.images.rows(tree.image_keys[shows_image])
            embeddings[0, torch.from_numpy(shows_image).to(device)] = features.to(embeddings)
        outputs = self.model(
            inputs_embeds=embeddings,
            position_ids=torch.from_numpy(tree.depths).to(device)[None],
            memory=self.memory.prefill(place, torch.from_numpy(tree.last).to(device)),
            ntk_alpha=torch.tensor([planned.alpha], device=device),
            logits_to_keep=torch.from_numpy(tree.leaf).to(device),
        )
        self._choose(outputs.logits[0], self.rows[place].leaves)

    def step(self) -> None:
        """Generates one token for each open leaf."""
        device = self.model.device
        leaves = [(row, leaf) for row in self.rows for leaf in row.leaves]
        open_places = [place for place, (_, leaf) in enumerate(leaves) if not leaf.finished]
        if not open_places:  # all of them have ended with their first token
            return
        # A finished leaf keeps its place until the next rebuild; what is computed there is thrown away.
        tokens = [0 if leaf.finished else leaf.tokens[-1] for _, leaf in leaves]
        positions = [len(leaf.prompt.sequence) + len(leaf.tokens) - 1 for _, leaf in leaves]
        self.memory.begin_step()
        hidden_states = self.model.transformer(
            inputs_embeds=self.model.get_input_embeddings()(torch.tensor([tokens], device=device)),
            position_ids=torch.tensor([positions], device=device),
            ntk_alpha=torch.tensor([[row.planned.alpha for row, _ in leaves]], device=device),
            memory=self.memory,
        ).last_hidden_state
        self.memory.end_step()
        chosen = hidden_states[0, torch.tensor(open_places, device=device)]
        self._choose(self.model.lm_head(chosen), [leaves[place][1] for place in open_places])

    def clear(self) -> list[list[Prompt]]:
        """Drops all trees; returns the prompts of each that were not finished."""
        prompts = [[row.leaves[column].prompt for column in row.open_leaves] for row in self.rows]
        self.rows, self.memory = [], TreeMemory(self.model)
        return [of_tree for of_tree in prompts if of_tree]

    def _choose(self, logits: Tensor, leaves: Sequence[Leaf]) -> None:
        broken = logits.amax(-1).isnan().tolist()  # amax keeps NaN and reads once
        if any(broken):
            name = leaves[broken.index(True)].prompt.request.id
            raise FloatingPointError(f"request {name!r}: the model computes NaN; try another dtype than {logits.dtype}")
        tokens = choose_tokens(
            logits,
            [leaf.prompt.settings for leaf in leaves],
            [leaf.stream for leaf in leaves],
            [leaf.seen for leaf in leaves],
        )
        for leaf, token in zip(leaves, tokens, strict=True):
            if token in self.stop_ids:
                leaf.stopped = True
            else:
                leaf.tokens.append(token)
                if leaf.prompt.settings.repetition_penalty != 1:
                    leaf.seen.append(token)
            if leaf.finished:
                self.finished.append(leaf)
