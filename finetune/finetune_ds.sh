#!/usr/bin/env bash
# Fine-tunes Qwen-VL-Chat into the agent, on the published recipe:
#
#   bash finetune/finetune_ds.sh [flags of finetune.py]
#
# By environment (paths are relative to the repository root):
#   MODEL        checkpoint to start from (default: model_weights/Qwen-VL-Chat)
#   DATA         training samples (default: data/train/train_85k.json)
#   OUTPUT_DIR   where the result goes, and the checkpoints on the way (default: checkpoints/agent)
#   GPUS_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
#                as torchrun has them (default: all GPUs of this machine); run the same command on each node
#   GLOBAL_BATCH samples of an optimizer step on all GPUs together (default: 256, the published 8 GPUs x 8 x 4)
#   DS_ACCELERATOR=cpu   runs on the CPU, in float32, with GPUS_PER_NODE processes (default: 1)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Flags given here win. Killed or interrupted, the same command goes on from the last complete checkpoint.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-model_weights/Qwen-VL-Chat}
DATA=${DATA:-data/train/train_85k.json}
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/agent}
source finetune/launch.sh

# The published training gives every sample this system message, whatever its own says; inference gives another one.
launch \
    --system_message "You are a helpful assistant." \
    --num_train_epochs 3 \
    --model_max_length 3072 \
    --learning_rate 1e-5 \
    --weight_decay 0.05 \
    --adam_beta2 0.95 \
    --warmup_steps 0.01 \
    --lr_scheduler_type cosine \
    --max_grad_norm 1.0 \
    --gradient_checkpointing True \
    --save_strategy epoch \
    --save_total_limit 3 \
    --logging_steps 1 \
    --deepspeed finetune/ds_config_zero3.json \
    "$@"
