#!/usr/bin/env bash
# Reviews the answers to In-Test and Out-Test: MODEL=mmrole-agent bash eval/RM_review.sh [flags of RM_review.py, for both]
#
# By environment (paths are relative to the repository root):
#   MODEL        whose answers: eval/{in,out}-test_answers/$MODEL, reviewed into eval/{in,out}-test_reviews/$MODEL
#                (default: mmrole-agent)
#   MODEL_PATH   checkpoint directory of the reward model (default: model_weights/MMRole-Eval_RM)
#   IMAGE_DIR    folder of the images (default: images)
#   NPROC        number of processes (default: one for each GPU; one without a GPU)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Killed or interrupted, the same command goes on where it was.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-mmrole-agent}
MODEL_PATH=${MODEL_PATH:-model_weights/MMRole-Eval_RM}
IMAGE_DIR=${IMAGE_DIR:-images}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))' 2>/dev/null || echo 1)}
[[ $NPROC =~ ^[1-9][0-9]{0,3}$ ]] || {
    echo "error: NPROC=${NPROC@Q} is no number of processes; give one from 1 to 9999" >&2
    exit 2
}

launch=("$PYTHON")
[ "$NPROC" -eq 1 ] || launch+=(-m mmrole.launch --standalone --nproc_per_node "$NPROC")

for split in in-test out-test; do
    "${launch[@]}" eval/RM_review.py --model_path "$MODEL_PATH" --image_dir "$IMAGE_DIR" \
        --input_dir "eval/${split}_answers/$MODEL" --output_dir "eval/${split}_reviews/$MODEL" "$@"
done
