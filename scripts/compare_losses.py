"""Trains a small model on batches of prompt trees and on batches of single samples, and compares the loss curves.

    python scripts/compare_losses.py --data_path data/train/train_85k.json --image_dir images \
        --vocabulary model_weights/Qwen-VL-Chat/qwen.tiktoken

Trees change which samples make a step together: those of a dialogue. Prompts are shortened to be quick (their first 150
and last 350 characters). Only samples whose image is there are used. Prints mean training losses and the held-out loss.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrole.models.qwen_vl import QwenVL
    from mmrole.training.encoding import EncodedSample

STEPS, SAMPLES_PER_STEP, HELD_OUT = 200, 64, 64


def main(argv: list[str] | None = None) -> int:
    """Trains each way with each seed and prints a table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data_path", required=True, help="training file")
    parser.add_argument("--image_dir", required=True, help="image folder")
    parser.add_argument("--vocabulary", required=True, help="qwen.tiktoken")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way")
    arguments = parser.parse_args(argv)

    samples, family = read(arguments.data_path, arguments.image_dir, arguments.vocabulary)
    held_out, samples = samples[:HELD_OUT], samples[HELD_OUT:]
    print(f"{len(samples)} samples, {HELD_OUT} held out; mean loss of the steps")
    print(
        f"{'':<28}" + "".join(f"{f'{stop - 49}-{stop}':>10}" for stop in range(50, STEPS + 1, 50)) + f"{'held out':>10}"
    )
    for prompt_tree in (False, True):
        for seed in range(arguments.seeds):
            losses, final = train(samples, held_out, family, prompt_tree, seed)
            means = [sum(losses[stop - 50 : stop]) / 50 for stop in range(50, STEPS + 1, 50)]
            name = f"{'prompt trees' if prompt_tree else 'single samples'}, seed {seed}"
            print(f"{name:<28}" + "".join(f"{loss:>10.3f}" for loss in (*means, final)), flush=True)
    return 0


def read(data_path: str, image_dir: str, vocabulary: str) -> tuple[list[EncodedSample], QwenVL]:
    """Shortened samples, shuffled by image so that no image is both held out and learned."""
    import random
    from pathlib import Path

    from mmrole.base.files import read_records
    from mmrole.data.messages import LabelledImage, Message
    from mmrole.data.prompts import split_pictures
    from mmrole.data.records import TrainingRecord
    from mmrole.models.qwen_vl import QwenVL
    from mmrole.qwen_vl import QWenTokenizer
    from mmrole.qwen_vl.random_checkpoint import random_config
    from mmrole.training.encoding import SampleEncoder
    from mmrole.training.samples import TrainingSample

    tokenizer = QWenTokenizer(vocabulary)
    ranks = len(tokenizer.mergeable_ranks)
    config = random_config(
        ranks, hidden_size=128, intermediate_size=512, visual_width=32, image_size=224, init_std=0.02
    )
    family = QwenVL(tokenizer, config)
    encoder = SampleEncoder(family, max_length=2048)
    by_image: dict[Path, list[EncodedSample]] = {}
    for record in read_records(data_path, TrainingRecord):
        (path, *_), text = split_pictures(record.turns[0].value)
        file = Path(image_dir) / path.removeprefix("images/")
        if file.is_file():
            user = Message("user", (LabelledImage(file, "Picture 1: "), f"\n{text[:150]}\n{text[-350:]}"))
            turns = (user, Message("assistant", (record.turns[1].value,)))
            by_image.setdefault(file, []).append(encoder.encode(TrainingSample(record.where, turns)))
    images = sorted(by_image)
    random.Random(0).shuffle(images)
    return [sample for image in images for sample in by_image[image]], family


def train(
    samples: list[EncodedSample], held_out: list[EncodedSample], family: QwenVL, prompt_tree: bool, seed: int
) -> tuple[list[float], float]:
    """The loss of each step, and the held-out loss after the last."""
    import torch
    from tqdm import tqdm

    from mmrole.qwen_vl.random_checkpoint import random_model
    from mmrole.training.batches import collate
    from mmrole.training.loss import tree_loss
    from mmrole.training.packing import group_samples, pack_epoch

    model = random_model(family.config, seed=0, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95))
    pack = partial(
        pack_epoch,
        group_samples(samples, prompt_tree),
        samples_per_step=SAMPLES_PER_STEP,
        world_size=1,
        max_batch_tokens=8192,
        seed=seed,
    )
    steps = [step for epoch in range(100) for step in pack(epoch=epoch)][:STEPS]
    losses = []
    for step in tqdm(steps, disable=None):
        batches = [collate([samples[i] for i in bin_], family, prompt_tree=prompt_tree) for bin_ in step.bins[0]]
        count = sum(batch.n_targets for batch in batches)
        total = 0.0
        for batch in batches:
            loss = tree_loss(model, batch, family).sum / count
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        batches = (collate(held_out[start : start + 16], family) for start in range(0, len(held_out), 16))
        sums = [tree_loss(model, batch, family) for batch in batches]
    return losses, float(sum(loss.sum for loss in sums)) / sum(loss.n_targets for loss in sums)


if __name__ == "__main__":
    from mmrole.base.errors import run

    run(main)
