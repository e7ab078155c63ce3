"""Everything of the engine that touches a device: images, prefills, steps, the KV cache, the choice of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mmrole.data.image_file import ImageFile
from mmrole.data.messages import ImageSource
from mmrole.engine.kv_budget import free_positions
from mmrole.engine.kv_cache import TreeKVCache
from mmrole.engine.planning import PlannedTree
from mmrole.engine.sampling import Choice, choose_tokens
from mmrole.models.families import TreeModel
from mmrole.prompt_tree.image_keys import feature_rows, images_shown
from mmrole.prompt_tree.mask import ancestor_rows


class Runner:
    """Computes what a batch decides. It knows rows of the KV cache and columns of leaves, no requests.

    Attributes:
        cache: keys and values of the trees of the batch.
        encoded: images that the vision tower has read so far.
    """

    def __init__(self, model: TreeModel) -> None:
        self.model = model
        self.encoded = 0
        self.cache = TreeKVCache(model)
        self._readers: ThreadPoolExecutor | None = None
        self._pixels: dict[int, Future[Tensor]] = {}
        self._features: dict[int, Tensor] = {}

    @property
    def is_full(self) -> bool:
        """Whether the KV cache has no room for another step before the next `rebuild`."""
        return self.cache.is_full

    def free_positions(self) -> int:
        """Positions for which there is memory."""
        return free_positions(self.model)

    def read_ahead(self, images: Mapping[int, ImageSource]) -> None:
        """Starts reading images, by number, that prefills will need soon."""
        for number, source in images.items():
            if number not in self._pixels and number not in self._features:
                if self._readers is None:
                    self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="image")
                self._pixels[number] = self._readers.submit(self._read, source)

    def forget_images(self, numbers: Iterable[int]) -> None:
        """Frees what is kept of images that no prefill needs any more."""
        for number in numbers:
            self._features.pop(number, None)
            if (pixels := self._pixels.pop(number, None)) is not None:
                pixels.cancel()

    @torch.inference_mode()
    def rebuild(
        self, keep: Sequence[tuple[int, Sequence[int]]], entering: Sequence[PlannedTree], steps: int
    ) -> list[int]:
        """Lays the KV cache out anew, see `TreeKVCache.rebuild`; the trees that enter are then to be prefilled."""
        device = self.model.device
        trees = (planned.tree for planned in entering)
        masks = [
            ancestor_rows(*(torch.from_numpy(nodes).to(device) for nodes in (tree.last, tree.leaf))) for tree in trees
        ]
        return self.cache.rebuild(keep, masks, steps)

    @torch.inference_mode()
    def prefill(self, row: int, planned: PlannedTree, choices: Sequence[Choice]) -> list[int]:
        """Reads a row's tree in one pass and chooses the first token of each of its leaves.

        Raises:
            OSError: an image cannot be read.
            FloatingPointError: the model computes NaN.
        """
        tree, device = planned.tree, self.model.device
        hidden_states = self.model.hidden_states(
            torch.from_numpy(tree.input_ids).to(device),
            torch.from_numpy(planned.positions).to(device),
            torch.tensor([planned.share_key], device=device),
            self.cache.prefill(row, torch.from_numpy(tree.last).to(device)),
            self._images(planned),
        )
        return self._choose(hidden_states[torch.from_numpy(tree.leaf).to(device)], choices)

    @torch.inference_mode()
    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        share_keys: Sequence[int],
        open_leaves: Sequence[int],
        choices: Sequence[Choice],
    ) -> list[int]:
        """One more token of each open leaf.

        Args:
            tokens: the last one of each leaf, row by row.
            positions: of these tokens.
            share_keys: of these tokens' trees.
            open_leaves: indices of leaves; what is computed for the others is thrown away.
            choices: how the next token of each open leaf is chosen.

        Raises:
            FloatingPointError: the model computes NaN.
        """
        device = self.model.device
        rows = torch.tensor([positions], device=device)
        self.cache.begin_step()
        hidden_states = self.model.hidden_states(
            torch.tensor(tokens, device=device),
            rows.expand(self.model.family.position_rows, -1),
            torch.tensor(share_keys, device=device),
            self.cache,
        )
        self.cache.end_step()
        return self._choose(hidden_states[torch.tensor(open_leaves, device=device)], choices)

    def clear(self) -> None:
        """Drops the KV cache and gives its memory back."""
        self.cache = TreeKVCache(self.model)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Ends the threads that read images."""
        if self._readers is not None:
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._readers = None

    def _images(self, planned: PlannedTree) -> tuple[Tensor, Tensor] | None:
        """Places in a tree that show images, and their features."""
        keys = planned.tree.image_keys
        numbers = images_shown(keys)
        if not numbers:
            return None
        for number in numbers:
            if number not in self._features:
                self._features[number] = self.model.image_features(self._pixels.pop(number).result())[0]
                self.encoded += 1
        rows = torch.from_numpy(feature_rows(keys, {number: len(self._features[number]) for number in numbers}))
        places = (rows >= 0).nonzero()[:, 0]
        features = torch.cat([self._features[number] for number in numbers])
        return places.to(self.model.device), features[rows[places].to(features.device)]

    def _choose(self, hidden_states: Tensor, choices: Sequence[Choice]) -> list[int]:
        logits = self.model.logits(hidden_states)
        broken = logits.amax(-1).isnan().tolist()  # amax keeps NaN and reads once
        if any(broken):
            name = choices[broken.index(True)].name
            raise FloatingPointError(f"request {name!r}: the model computes NaN; try another dtype than {logits.dtype}")
        return choose_tokens(logits, choices)

    def _read(self, source: ImageSource) -> Tensor:
        return self.model.family.preprocess([source.open() if isinstance(source, ImageFile) else source])
