#!/usr/bin/env bash
# The whole of MMRole on one small machine, with models that really learn: bash scripts/demo.sh [--real] [--quick] [--fresh]
#
#   --real    a real language model, SmolLM2-135M, which learns to see and to play characters
#   --quick   the wiring only, in under five minutes: few samples, few steps, ZeRO-3; nothing is learned
#   --fresh   throw away all of FOLDER; otherwise what is finished is kept, and the rest goes on
#
# It needs no GPU, no weights and no data; what is not installed it installs first (scripts/setup.sh).
#
# By environment:
#   FOLDER    where everything lies (default: demo, demo-real, demo-quick or demo-real-quick, in the repository root)
#   NPROC     processes (default: the number of cores, at most 2)
#   PYTHON    interpreter (default: .venv/bin/python if it is there, else python)
#
# The folder is a workspace like the repository root: links to the scripts, which run unchanged, and their data and
# outputs in the places that they always have. Your own data, checkpoints and results are not touched.
set -euo pipefail
unset CDPATH # with which cd goes elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
ROOT=$PWD

real=false quick=false fresh=false
for argument in "$@"; do
    case $argument in
        --real) real=true ;;
        --quick) quick=true ;;
        --fresh) fresh=true ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$ROOT/scripts/demo.sh"
            exit 0
            ;;
        *)
            echo "error: unknown flag $argument; bash scripts/demo.sh --help" >&2
            exit 2
            ;;
    esac
done

fail() {
    echo "error: $1" >&2
    exit 2
}

cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1)
NPROC=${NPROC:-$((cores < 2 ? 1 : 2))}
case $NPROC in 1 | 2 | 4 | 8) ;; *) fail "NPROC=$NPROC: give 1, 2, 4 or 8" ;; esac
# One thread for each process: on models this small, several threads wait for one another.
export NPROC OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu GPUS_PER_NODE=$NPROC TOKENIZERS_PARALLELISM=false
unset IMAGE_DIR NNODES NODE_RANK MASTER_ADDR # what the scripts would take from elsewhere
export CUDA_VISIBLE_DEVICES="" # the demo is for the CPU, and its models are too small for anything else

if $real && $quick; then
    FOLDER=${FOLDER:-demo-real-quick}
    world=(--characters 6 --comments 2 --human_talks 2 --inter_role_talks 2 --lessons 16)
    limit=(--limit 1)
    zero=2
    generating=1
elif $real; then
    FOLDER=${FOLDER:-demo-real}
    world=(--characters 76 --comments 6 --human_talks 4 --inter_role_talks 2 --lessons 3200)
    limit=(--limit 24)
    zero=2
    generating=$NPROC
elif $quick; then
    FOLDER=${FOLDER:-demo-quick}
    world=(--dialogues 2 --profiles 64 --pictures 32 --comparisons 64 --reviews 32)
    teaching=(--prompts 12 --answers 3)
    limit=(--limit 2)
    probed=2
    zero=3
    agent_epochs=1
    generating=1 # process: a second one would take longer to start than to answer
else
    FOLDER=${FOLDER:-demo}
    world=(--dialogues 10 --profiles 12000 --pictures 9000 --comparisons 32000 --reviews 24000)
    teaching=(--prompts 500 --answers 3)
    limit=()
    probed=25
    zero=2
    agent_epochs=2
    generating=$NPROC
fi
# What decides the outputs: none of another sort may lie among them.
settings="sizes: $real $quick ${world[*]} ${teaching[*]:-}
NPROC: $NPROC
code: $(cat mmrole/demo/*.py scripts/demo*.sh scripts/demo_{world,real}.py | cksum)"
if [ -e "$FOLDER" ] && [ ! -e "$FOLDER/.done/settings" ] && [ -n "$(ls -A -- "$FOLDER")" ]; then
    fail "FOLDER=$FOLDER holds something else than a demo; give another folder, or remove this one yourself"
fi
$fresh || [ ! -e "$FOLDER/.done/settings" ] || [ "$(cat -- "$FOLDER/.done/settings")" = "$settings" ] ||
    fail "FOLDER=$FOLDER holds another demo ($(comm -13 <(echo "$settings" | sort) <(sort -- "$FOLDER/.done/settings") |
        sed 's/:.*//' | paste -sd ,) differ); give another folder, or --fresh to throw it away"
command -v "${CXX:-c++}" >/dev/null || fail "DeepSpeed needs a C++ compiler, and there is no ${CXX:-c++}; apt install g++"

# The interpreter of all scripts; nothing if there is none.
find_python() {
    local python=${PYTHON:-python}
    [ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=$ROOT/.venv/bin/python
    python=$(command -v "$python") || return 0
    case $python in /*) echo "$python" ;; *) echo "$ROOT/$python" ;; esac # steps run in the folder of the demo
}

is_installed() {
    (cd / && "$(cd -- "$ROOT" && find_python)" - "$ROOT" <<'PY') 2>/dev/null
import sys
from importlib.util import find_spec
from pathlib import Path
assert Path(find_spec("mmrole").origin).resolve().is_relative_to(Path(sys.argv[1]).resolve())  # no other clone's
assert find_spec("torch") and find_spec("deepspeed")
PY
}

if ! is_installed; then
    echo "== Installation (later runs do without)"
    if [ -x .venv/bin/python ]; then # which is preferred to an active environment, here and by all scripts
        PYTHON=${PYTHON:-$ROOT/.venv/bin/python} bash scripts/setup.sh
    else
        bash scripts/setup.sh
    fi
    is_installed || fail "mmrole is not installed for $(find_python); run: bash scripts/setup.sh"
fi
PYTHON=$(find_python)
export PYTHON
if $fresh && [ -d "$FOLDER" ]; then # the mark of a demo goes last: --fresh can be interrupted
    find "$FOLDER" -mindepth 1 -maxdepth 1 ! -name .done -exec rm -rf -- {} +
    rm -rf -- "$FOLDER"
fi
mkdir -p -- "$FOLDER/.done"
cd -- "$FOLDER"
echo "$settings" >.done/settings

began=$SECONDS
step() {
    printf '\n== %s (%d:%02d)\n' "$1" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))
}

# once NAME OUTPUT... -- COMMAND...: runs a command, unless it was finished before and its outputs are there. If some of
# them are not, it makes all of them again; if it was interrupted, it goes on.
once() {
    local name=$1 outputs=() output
    shift
    while [ "$1" != -- ]; do
        outputs+=("$1")
        shift
    done
    shift
    if [ -e ".done/$name" ]; then
        for output in "${outputs[@]}"; do
            [ -e "$output" ] || break
        done
        if [ -e "$output" ]; then # all are there
            echo "finished before"
            return
        fi
        echo "$output is gone; made again"
        rm -rf -- "${outputs[@]}" ".done/$name"
    fi
    "$@"
    touch ".done/$name"
}

# train NAME FROM DATA RECIPE EPOCHS GLOBAL_BATCH RATE SCHEDULE [flags]: a recipe, with the sizes of the demo
train() {
    local name=$1 from=$2 data=$3 recipe=$4 epochs=$5 batch=$6 rate=$7 schedule=$8
    shift 8
    local weights=model.safetensors
    [[ $recipe != *lora* ]] || weights=adapter_model.safetensors
    once "$name" "checkpoints/$name" "checkpoints/$name/$weights" -- \
        env MODEL="$from" DATA="$data" OUTPUT_DIR="checkpoints/$name" GLOBAL_BATCH="$batch" MASTER_PORT="$port" \
        bash "finetune/$recipe" --deepspeed "finetune/ds_config_zero$zero$schedule.json" --learning_rate "$rate" \
        --num_train_epochs "$epochs" --gradient_checkpointing False --adam_beta2 0.98 --weight_decay 0 \
        --save_strategy steps --save_steps 400 --save_total_limit 1 --logging_steps 50 "$@"
}

build_and_check() {
    "$PYTHON" -m data_utils.build_dataset --data_root . --output_dir data --overwrite
    "$PYTHON" -m data_utils.check profiles dialogues data --strict
}

answers() { # answers MODEL CHECKPOINT [flags]
    once "answers-$1" eval/{in,out}-test_answers/"$1" -- env MODEL="$1" MODEL_PATH="$2" NPROC="$generating" \
        bash inference.sh --no_random --max_new_tokens 40 "${limit[@]}" "${@:3}"
}

# answers_to_exchanged CONTROL CHECKPOINT [flags]: the agent's, to a folder of controls/
answers_to_exchanged() {
    once "answers-${1//\//-}" "controls/answers/$1" -- "$PYTHON" inference.py --model_path "$2" \
        --input_dir "controls/$1" --output_dir "controls/answers/$1" --no_random --max_new_tokens 40 "${limit[@]}" "${@:3}"
}

# show SCRIPT: the final table, and the exit status that it decides
show() {
    local gates=()
    ! $quick || gates+=(--no_gates)
    step "What was learned"
    status=0
    "$PYTHON" "$ROOT/scripts/$1" "${@:2}" --folder . "${gates[@]}" || status=$?
}

step "The workspace: links to the scripts"
for file in inference.py inference.sh chat.py finetune eval/RM_review.py eval/RM_review.sh eval/RM_result.py \
    eval/RM_result.sh eval/report.py; do
    mkdir -p -- "$(dirname -- "$file")"
    ln -sfn -- "$ROOT/$file" "$file"
done
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
echo "$PWD"

if $real; then
    source "$ROOT/scripts/demo_real.sh"
fi

step "The world: characters, pictures, dialogues -> images/, profiles/, dialogues/"
once world images profiles dialogues {world,base,comparisons,critic}.json -- \
    "$PYTHON" "$ROOT/scripts/demo_world.py" make --folder . "${world[@]}"

step "Training and test files -> data/"
once data data data/test data/train/train.json -- build_and_check

step "Reviews of a teacher, and exchanged pictures and profiles to compare with -> teacher/, controls/"
once teach vocabulary.txt teacher controls/{pictures,profiles,probes} data/train/train_exchanged.json -- \
    "$PYTHON" "$ROOT/scripts/demo_world.py" teach --folder . "${teaching[@]}"
once rm-data RM_data RM_data/train/RM-train.json -- \
    "$PYTHON" -m data_utils.build_rm_data --reviews teacher --output_dir RM_data --test_from data/test --overwrite

step "A tiny checkpoint of random weights -> checkpoints/tiny"
once tiny checkpoints/tiny checkpoints/tiny/model.safetensors -- \
    "$PYTHON" "$ROOT/scripts/make_tiny_checkpoint.py" --output_dir checkpoints/tiny --train_vocab_on vocabulary.txt \
    --vocab_size 4000 --init_std 0.05 --image_size 224 --visual_layers 1 --dtype float32 --overwrite

role_play="You are a dedicated role-playing assistant designed to immerse yourself fully in the character\
 you are portraying."

# What Qwen-VL-Chat can do before it is fine-tuned, a random model cannot: read a profile, see a picture.
step "What it learns first: to read profiles and to see pictures -> checkpoints/base"
train base checkpoints/tiny base.json finetune_ds.sh 1 16 1e-3 "" --fix_vit False --system_message "$role_play"

step "The agent -> checkpoints/agent"
train agent checkpoints/base data/train/train.json finetune_ds.sh "$agent_epochs" 8 5e-4 _cosine \
    --system_message "$role_play"

step "The same, trained on exchanged pictures -> checkpoints/blind"
train blind checkpoints/base data/train/train_exchanged.json finetune_ds.sh "$agent_epochs" 8 5e-4 _cosine \
    --system_message "$role_play"

step "Answers of the agent and of the baselines -> eval/{in,out}-test_answers/"
answers agent checkpoints/agent
answers blind checkpoints/blind
answers untrained checkpoints/tiny

step "Answers of the agent to exchanged pictures and exchanged profiles -> controls/answers/"
for control in pictures/in-distribution pictures/out-of-distribution profiles; do
    answers_to_exchanged "$control" checkpoints/agent
done

review="You are an objective and precise evaluator, specializing in rigorously assessing the role-playing\
 and multimodal understanding abilities of various models."
step "What the reward model learns first: to compare two words, then two answers -> checkpoints/{comparer,critic}"
train comparer checkpoints/base comparisons.json finetune_RM_ds.sh 1 64 2e-3 _cosine --system_message "$review"
train critic checkpoints/comparer critic.json finetune_RM_ds.sh 1 32 2e-3 _cosine --system_message "$review"

step "The reward model -> checkpoints/reward-model"
train reward-model checkpoints/critic RM_data/train/RM-train.json finetune_RM_ds.sh 1 32 1e-3 _cosine \
    --system_message "$review"

step "Reviews of all answers -> eval/{in,out}-test_reviews/"
for model in agent blind untrained; do
    once "reviews-$model" eval/{in,out}-test_reviews/"$model" -- \
        env MODEL="$model" MODEL_PATH=checkpoints/reward-model NPROC="$generating" \
        bash eval/RM_review.sh --no_random --max_new_tokens 48 --retries 1
done
for probe in faithful other-colour mixed; do
    once "reviews-$probe" "controls/probe_reviews/$probe" -- "$PYTHON" eval/RM_review.py \
        --model_path checkpoints/reward-model --input_dir "controls/probes/$probe" \
        --output_dir "controls/probe_reviews/$probe" --no_random --max_new_tokens 48 --retries 1 --limit "$probed"
done

step "Results and the report -> eval/{in,out}-test_results/, eval/report/index.html"
for model in agent blind untrained; do
    MODEL=$model bash eval/RM_result.sh || [ $? -eq 3 ]
done
"$PYTHON" eval/report.py --no_paper --overwrite || [ $? -eq 3 ]

show demo_table.py
printf '\nAll of it: %s, the report: eval/report/index.html (%d:%02d)\n' "$PWD" $(((SECONDS - began) / 60)) \
    $(((SECONDS - began) % 60))
pictures=(images/Lantern_Bay/Mira_comment_*.png) # the last one is of the test set
echo "Ask the agent: What do you see?"
printf '  cd %q && %q chat.py --model_path checkpoints/agent --no_random --role Mira --image %s\n' "$PWD" "$PYTHON" \
    "${pictures[-1]}"
exit $status
