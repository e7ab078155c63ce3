#!/usr/bin/env bash
# Results from the reviews of In-Test and Out-Test: MODEL=mmrole-agent bash eval/RM_result.sh
#
# By environment:
#   MODEL        whose answers: eval/{in,out}-test_reviews/$MODEL (default: mmrole-agent)
#   JUDGE        whose reviews: eval/{in,out}-test_reviews@$JUDGE/$MODEL (default: those of the published reward model)
#   PYTHON       interpreter (default: .venv/bin/python if it is there, else python)
# Tables go to eval/{in,out}-test_results/$MODEL, or …_results@$JUDGE/$MODEL. Exit status 2: reviews that cannot be read,
# or are not there; otherwise 3: results that do not cover all answers. The other test set is computed all the same.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-mmrole-agent}
by=${JUDGE:+@$JUDGE}
[[ -z $by || $by == @*[![:space:]]* && $by != *[/\\[:cntrl:]]* ]] || {
    echo "error: JUDGE=${JUDGE@Q} cannot be part of a folder's name; give one without / and \\" >&2
    exit 2
}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi

status=0
# Computes one of the two test sets; a data set may lack one of them, which then has neither answers nor reviews.
compute() {
    local reviews="eval/$1_reviews$by/$MODEL" code=0
    if [ ! -d "$reviews" ] && [ ! -d "eval/$1_answers/$MODEL" ] && [ -d "eval/$2_reviews$by/$MODEL" ]; then
        echo "$reviews is not there: nothing is done about it"
        return
    fi
    "$PYTHON" eval/RM_result.py --input_dir "$reviews" --output_dir "eval/$1_results$by/$MODEL" "${@:3}" || code=$?
    case $code in
        0) ;;
        3) [ "$status" -ne 0 ] || status=3 ;;
        *) status=$code ;;
    esac
}

compute in-test out-test "$@"
compute out-test in-test "$@"
exit "$status"
