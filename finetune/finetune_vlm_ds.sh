#!/usr/bin/env bash
# Fine-tunes a vision-language model of transformers (Qwen2.5-VL, Qwen3-VL, LLaVA, Gemma 3, …) into an agent:
#
#   MODEL=DIRECTORY bash finetune/finetune_vlm_ds.sh [flags of finetune.py]
#
# By environment (paths are relative to the repository root):
#   MODEL        checkpoint to start from: its directory
#   DATA         training samples (default: data/train/train_85k.json)
#   OUTPUT_DIR   where the result goes, and the checkpoints on the way (default: checkpoints/vlm-agent)
#   GPUS_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
#                as torchrun has them (default: all GPUs of this machine); run the same command on each node
#   GLOBAL_BATCH samples of an optimizer step on all GPUs together (default: 256, as published)
#   DS_ACCELERATOR=cpu   runs on the CPU, in float32, with GPUS_PER_NODE processes (default: 1)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Flags given here win. Killed or interrupted, the same command goes on from the last complete checkpoint.
# docs/training.md says why the hyper-parameters are what they are.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

[ -n "${MODEL:-}" ] || {
    echo "error: MODEL is not set; give the directory of a checkpoint, such as model_weights/Qwen3-VL-8B-Instruct" >&2
    exit 2
}
DATA=${DATA:-data/train/train_85k.json}
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/vlm-agent}
GLOBAL_BATCH=${GLOBAL_BATCH:-256}
source finetune/launch.sh

# No --system_message: each sample has its own, as inference gives it.
# No --freeze: by default the tower is frozen and the projector trained, as in the published recipe.
launch \
    --num_train_epochs 3 \
    --model_max_length 4096 \
    --learning_rate 1e-5 \
    --weight_decay 0.05 \
    --adam_beta2 0.95 \
    --warmup_steps 0.03 \
    --lr_scheduler_type cosine \
    --max_grad_norm 1.0 \
    --gradient_checkpointing True \
    --save_strategy epoch \
    --save_total_limit 3 \
    --logging_steps 1 \
    --deepspeed finetune/ds_config_zero3_cosine.json \
    "$@"
