# shellcheck shell=bash
# What the recipes share; they source it: how many processes there are, what each takes of a step, and their start.

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
# DeepSpeed looks for ninja on the path when it builds its optimizer.
PATH=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
export PATH

NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-6001}
GLOBAL_BATCH=${GLOBAL_BATCH:-256}
if [ "${DS_ACCELERATOR:-}" = cpu ]; then
    GPUS_PER_NODE=${GPUS_PER_NODE:-1}
    precision=()
else
    GPUS_PER_NODE=${GPUS_PER_NODE:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}
    precision=(--bf16 True)
fi

fail() {
    echo "error: $*" >&2
    exit 2
}

number() { # name of a variable, least and greatest value
    [[ ${!1} =~ ^(0|[1-9][0-9]{0,8})$ ]] && [ "${!1}" -ge "$2" ] && [ "${!1}" -le "$3" ] ||
        fail "$1=${!1@Q}: give a whole number from $2 to $3"
}

[ "$GPUS_PER_NODE" != 0 ] || fail "no GPU found; DS_ACCELERATOR=cpu runs on the CPU"
number GPUS_PER_NODE 1 9999
number NNODES 1 99999
number NODE_RANK 0 $((NNODES - 1))
number MASTER_PORT 1 65535
number GLOBAL_BATCH 1 999999999
processes=$((GPUS_PER_NODE * NNODES))
[ $((GLOBAL_BATCH % processes)) -eq 0 ] ||
    fail "GLOBAL_BATCH=$GLOBAL_BATCH cannot be shared out evenly by $processes processes; set another GLOBAL_BATCH"

launch() {
    exec "$PYTHON" -m mmrole.base.launch \
        --nproc_per_node "$GPUS_PER_NODE" --nnodes "$NNODES" --node_rank "$NODE_RANK" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" finetune/finetune.py \
        --model_name_or_path "$MODEL" --data_path "$DATA" --output_dir "$OUTPUT_DIR" \
        --per_device_train_batch_size $((GLOBAL_BATCH / processes)) "${precision[@]}" "$@"
}
