#!/usr/bin/env bash
# Answers In-Test and Out-Test with an agent: bash inference.sh [flags of inference.py, for both]
#
# By environment (paths are relative to the repository root):
#   MODEL_PATH   checkpoint directory (default: model_weights/MMRole-Agent)
#   MODEL        name of the output folders, eval/{in,out}-test_answers/$MODEL (default: mmrole-agent)
#   API_BASE     address of a server's API, as in https://api.openai.com/v1: a model of its own answers, API_MODEL
#   API_MODEL    name of the model there; needs MODEL
#   IMAGE_DIR    folder of the images (default: images)
#   NPROC        number of processes (default: one for each GPU; one without a GPU)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Killed or interrupted, the same command goes on where it was. Exit status 3: requests have failed; the same command
# asks them again.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

if [ -n "${API_BASE:-}${API_MODEL:-}" ] && [ -z "${MODEL:-}" ]; then
    echo "error: with API_BASE and API_MODEL, MODEL must name the output folders, as in MODEL=gpt-4o" >&2
    exit 2
fi
MODEL=${MODEL:-mmrole-agent}
IMAGE_DIR=${IMAGE_DIR:-images}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
[ -z "${API_BASE:-}${API_MODEL:-}" ] || NPROC=${NPROC:-1} # a server is asked from one process
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))' 2>/dev/null || echo 1)}
[[ $NPROC =~ ^[1-9][0-9]{0,3}$ ]] || {
    echo "error: NPROC=${NPROC@Q} is no number of processes; give one from 1 to 9999" >&2
    exit 2
}

# Replies of a file (--replies) come in place of the model; one that is named beside them is refused.
model=(--model_path "${MODEL_PATH:-model_weights/MMRole-Agent}")
for flag in "$@"; do
    [[ -n "${MODEL_PATH:-}" || $flag != --replies?(=*) ]] || model=()
done

if [ -n "${API_BASE:-}${API_MODEL:-}" ]; then
    # A checkpoint that is named beside them is refused.
    model=(--api_base "${API_BASE:-}" --api_model "${API_MODEL:-}" ${MODEL_PATH:+--model_path "$MODEL_PATH"})
fi

launch=("$PYTHON")
[ "$NPROC" -eq 1 ] || launch+=(-m mmrole.base.launch --standalone --nproc_per_node "$NPROC")

status=0
# Answers one of the two test sets; a data set may lack one of them, and without either the first call says what to do.
answer() {
    if [ ! -d "data/test/$1" ] && [ -d "data/test/$3" ]; then
        echo "data/test/$1 is not there: nothing is done about it"
        return
    fi
    local code=0
    "${launch[@]}" inference.py "${model[@]}" --image_dir "$IMAGE_DIR" \
        --input_dir "data/test/$1" --output_dir "eval/$2/$MODEL" "${@:4}" || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || exit "$code"
    [ "$code" -eq 0 ] || status=3
}

answer in-distribution in-test_answers out-of-distribution "$@"
answer out-of-distribution out-test_answers in-distribution "$@"
exit "$status"
