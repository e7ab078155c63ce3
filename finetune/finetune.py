"""Trains Qwen-VL-Chat, or a vision-language model of transformers, into an agent or a reward model.

Full fine-tuning, LoRA or QLoRA:

    python finetune/finetune.py --model_name_or_path model_weights/Qwen-VL-Chat \\
        --data_path data/train/train_85k.json --output_dir checkpoints/my-agent
    bash finetune/finetune_ds.sh        # the published recipe, on all GPUs
    MODEL=DIRECTORY bash finetune/finetune_vlm_ds.sh    # for other models

Killed or interrupted, the same command goes on from the last complete checkpoint.
"""

import sys

try:
    from mmrole.base.errors import run
    from mmrole.training.finetuning import main
    from mmrole.training.ranks import ending_at_once
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run: pip install -e . (or bash scripts/setup.sh)", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    with ending_at_once():
        run(main)
