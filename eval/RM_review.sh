#!/usr/bin/env bash
# Reviews the answers to In-Test and Out-Test: MODEL=mmrole-agent bash eval/RM_review.sh [flags of RM_review.py, for both]
#
# By environment (paths are relative to the repository root):
#   MODEL        whose answers: eval/{in,out}-test_answers/$MODEL, reviewed into eval/{in,out}-test_reviews/$MODEL
#                (default: mmrole-agent)
#   JUDGE        another judge than the published reward model, whose reviews go into eval/{in,out}-test_reviews@$JUDGE;
#                it is said what judges: by MODEL_PATH, or by --replies
#   MODEL_PATH   checkpoint directory of the reward model (default: model_weights/MMRole-Eval_RM)
#   IMAGE_DIR    folder of the images (default: images)
#   NPROC        number of processes (default: one for each GPU; one without a GPU)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Killed or interrupted, the same command goes on where it was. Exit status 3: requests have failed; the same command
# asks them again.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

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

[[ -z "${JUDGE:-}" || -n "${MODEL_PATH:-}" || ${#model[@]} -eq 0 ]] || {
    echo "error: JUDGE=$JUDGE is a name only; say what judges: MODEL_PATH=DIR or --replies FILE" >&2
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
