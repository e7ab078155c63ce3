"""The library behind the scripts: Qwen-VL, prompt trees, generation, training, scoring."""
