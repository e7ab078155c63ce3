#!/usr/bin/env bash
# Reviews the answers to In-Test and Out-Test: MODEL=mmrole-agent bash eval/RM_review.sh [flags of RM_review.py, for both]
#
# By environment (paths are relative to the repository root):
#   MODEL        whose answers: eval/{in,out}-test_answers/$MODEL, reviewed into eval/{in,out}-test_reviews/$MODEL
#                (default: mmrole-agent)
#   JUDGE        another judge than the published reward model, whose reviews go into eval/{in,out}-test_reviews@$JUDGE;
#                it is said what judges: by MODEL_PATH, by API_BASE and API_MODEL, or by --replies
#   MODEL_PATH   checkpoint directory of the reward model (default: model_weights/MMRole-Eval_RM)
#   API_BASE     address of a server's API, as in https://api.openai.com/v1: a model of its own reviews, API_MODEL
#   API_MODEL    name of the model there; needs MODEL and JUDGE
#   IMAGE_DIR    folder of the images (default: images)
#   NPROC        number of processes (default: one for each GPU; one without a GPU)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Killed or interrupted, the same command goes on where it was. Exit status 3: requests have failed; the same command
# asks them again.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if [ -n "${API_BASE:-}${API_MODEL:-}" ] && [ -z "${MODEL:-}" ]; then
    echo "error: with API_BASE and API_MODEL, MODEL must say whose answers are reviewed, as in MODEL=mmrole-agent" >&2
    exit 2
fi
if [ -n "${API_BASE:-}${API_MODEL:-}" ] && [ -z "${JUDGE:-}" ]; then
    echo "error: with API_BASE and API_MODEL, JUDGE must name the judge, whose reviews have a folder, as in JUDGE=gpt-4o" >&2
    exit 2
fi
MODEL=${MODEL:-mmrole-agent}
IMAGE_DIR=${IMAGE_DIR:-images}
by=${JUDGE:+@$JUDGE}
[[ -z $by || $by == @*[![:space:]]* && $by != *[/\\[:cntrl:]]* ]] || {
    echo "error: JUDGE=${JUDGE@Q} cannot be part of a folder's name; give one without / and \\" >&2
    exit 2
}
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
model=(--model_path "${MODEL_PATH:-model_weights/MMRole-Eval_RM}")
for flag in "$@"; do
    [[ -n "${MODEL_PATH:-}" || $flag != --replies?(=*) ]] || model=()
done

if [ -n "${API_BASE:-}${API_MODEL:-}" ]; then
    # A checkpoint that is named beside them is refused.
    model=(--api_base "${API_BASE:-}" --api_model "${API_MODEL:-}" ${MODEL_PATH:+--model_path "$MODEL_PATH"})
fi
[[ -z "${JUDGE:-}" || -n "${MODEL_PATH:-}${API_MODEL:-}" || ${#model[@]} -eq 0 ]] || {
    echo "error: JUDGE=$JUDGE is a name only; say what judges: MODEL_PATH=DIR, API_BASE=URL and API_MODEL=NAME, or" \
        "--replies FILE" >&2
    exit 2
}

launch=("$PYTHON")
[ "$NPROC" -eq 1 ] || launch+=(-m mmrole.base.launch --standalone --nproc_per_node "$NPROC")

status=0
# Reviews one of the two test sets; answers may lack one of them, and without either the first call says what to do.
review() {
    if [ ! -d "eval/$1_answers/$MODEL" ] && [ -d "eval/$2_answers/$MODEL" ]; then
        echo "eval/$1_answers/$MODEL is not there: nothing is done about it"
        return
    fi
    local code=0
    "${launch[@]}" eval/RM_review.py "${model[@]}" --image_dir "$IMAGE_DIR" \
        --input_dir "eval/$1_answers/$MODEL" --output_dir "eval/$1_reviews$by/$MODEL" "${@:3}" || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 3 ] || exit "$code"
    [ "$code" -eq 0 ] || status=3
}

review in-test out-test "$@"
review out-test in-test "$@"
exit "$status"
