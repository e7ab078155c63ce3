"""Every module of the library has its tests at the mirrored place, or a line here that says where it is tested."""

from pathlib import Path

import pytest

# The folder of the package → its module → the test file, below tests/. "./" stands for the mirrored folder.
ELSEWHERE = {
    "data_utils": {"check": "./checks/test_command.py"},
    "data_utils/checks": {
        "characters": "./test_kinds.py",
        "checker": "./test_damage.py",
        "surroundings": "./test_kinds.py",
        "copies": "./test_damage.py",
        "dialogues": "./test_kinds.py",
        "folders": "./test_command.py",
        "forms": "./test_damage.py",
        "loading": "./test_damage.py",
        "names": "./test_kinds.py",
        "pictures": "./test_kinds.py",
        "problems": "./test_docs.py",
        "repairs": "./test_damage.py",
        "report": "./test_command.py",
        "reviews": "./test_kinds.py",
        "samples": "./test_kinds.py",
        "shape": "./test_damage.py",
    },
    "data_utils/description": {
        "figures": "data_utils/test_describe.py",
        "sample_tokens": "data_utils/test_describe.py",
        "statistics": "data_utils/test_describe.py",
    },
    "data_utils/download": {
        "__main__": "./test_command.py",
        "archives": "./test_dataset.py",
        "listing": "./test_hostile.py",
        "outcome": "./test_command.py",
        "placing": "./test_dataset.py",
        "record": "./test_hub.py",
        "repository": "./test_hub.py",
        "room": "./test_hostile.py",
        "transfer": "./test_hub.py",
        "unpacking": "./test_dataset.py",
    },
    "mmrole/backends": {
        "backend": "./test_scripted.py",
        "engine": "inference/test_inference_errors.py",
    },
    "mmrole/backends/api": {
        "asking": "./test_generator.py",
        "api_backend": "./test_generator.py",
        "client": "./test_generator.py",
    },
    "mmrole/base": {
        "arguments": "data_utils/test_build_rm_data.py",
        "disk": "./test_journal.py",
        "fields": "mmrole/data/test_dialogues.py",
        "figure_style": "mmrole/scoring/test_figures.py",
        "file_hashes": "mmrole/models/test_checkpoints.py",
        "job_lock": "./test_journal.py",
        "journal_files": "./test_journal.py",
        "journal_lines": "./test_journal.py",
        "pillow": "mmrole/data/test_images.py",
        "tables": "data_utils/test_describe.py",
        "terminal": "test_chat.py",
    },
    "mmrole/chat/server": {
        "access_log": "./test_door.py",
        "answering": "test_serve.py",
        "app": "test_serve.py",
        "completions": "test_serve.py",
        "orders": "./test_engine_thread.py",
        "refusals": "./test_body_fields.py",
        "serving": "test_serve.py",
    },
    "mmrole/data": {
        "dataset": "./test_dialogues.py",
        "image_file": "inference/test_inference_accidents.py",
        "messages": "mmrole/models/test_encoding.py",
        "profiles": "./test_dialogues.py",
        "review_data": "data_utils/test_build_rm_data.py",
        "splits": "data_utils/test_build_dataset.py",
    },
    "mmrole/demo": {
        "characters": "./test_world.py",
        "controls": "./test_world.py",
        "drawings": "./test_world.py",
        "faults": "./test_teacher.py",
        "speakers": "./test_talks.py",
        "grammar": "./test_teacher.py",
        "lessons": "scripts/test_demo.py",
    },
    "mmrole/engine": {
        "batch": "./test_engine.py",
        "decoder": "./test_decoding.py",
        "image_features": "./test_engine.py",
        "images": "./test_engine.py",
        "kv_budget": "./test_engine.py",
        "kv_cache": "./test_engine.py",
        "on_device": "./test_decoding.py",
        "page_tables": "./test_paged_kv_cache.py",
        "paged_attention_kernel": "./test_paged_attention.py",
        "planning": "./test_engine.py",
        "reply_text": "./test_engine.py",
        "runner": "./test_engine.py",
        "step_graphs": "./test_decoding.py",
    },
    "mmrole/jobs": {
        "answers": "./test_job.py",
        "exchanges": "./test_job.py",
        "inputs": "inference/test_inference_errors.py",
        "options": "inference/test_inference.py",
        "origins": "mmrole/backends/api/test_generator.py",
        "outputs": "inference/test_inference_errors.py",
        "payloads": "inference/test_inference_durability.py",
        "processes": "inference/test_inference_durability.py",
        "programs": "./test_job.py",
        "reporting": "./test_job.py",
        "survey": "mmrole/backends/api/test_generator.py",
        "tasks": "inference/test_inference_accidents.py",
    },
    "mmrole/models": {
        "context": "inference/test_inference_errors.py",
        "loading": "./test_model_files.py",
        "qwen_vl": "mmrole/engine/test_engine.py",
        "qwen_vl_lengths": "inference/test_inference_errors.py",
        "qwen_vl_loading": "./test_model_files.py",
    },
    "mmrole/models/vlm": {
        "attention": "mmrole/engine/test_vlm_replies.py",
        "chat_probe": "./test_proof.py",
        "family": "mmrole/engine/test_vlm_replies.py",
        "merging": "finetune/test_vlm_training.py",
        "kept_proof": "./test_proof.py",
        "pixtral": "./test_encoding.py",
        "plain_text": "./test_encoding.py",
        "tree_model": "mmrole/engine/test_vlm_replies.py",
        "image_rows": "mmrole/engine/test_vlm_replies.py",
        "weight_files": "./test_loading.py",
    },
    "mmrole/prompt_tree": {
        "forest_kernel": "./test_forest_attention.py",
    },
    "mmrole/qwen_vl": {
        "attention": "./test_masks.py",
        "blocks": "./test_sensitivity.py",
        "bpe": "./test_tokenization.py",
        "causal_lm": "./test_generation.py",
        "checkpoint_files": "./test_bad_checkpoints.py",
        "configuration": "./test_config_values.py",
        "errors": "./test_bad_checkpoints.py",
        "image_positions": "./test_images_in_the_sequence.py",
        "list_format": "./test_tokenization.py",
        "message_encoding": "./test_chat_format.py",
        "modeling": "./test_forward.py",
        "random_checkpoint": "scripts/test_make_tiny_checkpoint.py",
        "vision": "./test_forward.py",
    },
    "mmrole/scoring": {
        "agreement_tables": "./test_agreement.py",
        "coverage": "./test_results.py",
        "figures_samples": "./test_figures.py",
        "measures": "./test_report.py",
        "page_data": "./test_page.py",
        "page_samples": "./test_page.py",
        "pairs": "./test_report.py",
        "paper": "./test_tables.py",
        "provenance": "eval/test_report.py",
        "release": "scripts/test_verify_release.py",
        "review_replies": "eval/test_RM_review.py",
        "tables_csv": "./test_tables.py",
        "tables_tex": "./test_tables.py",
    },
    "mmrole/training": {
        "arguments": "./test_flags.py",
        "batches": "./test_loss.py",
        "deepspeed_adam": "finetune/test_resume.py",
        "deepspeed_config": "./test_flags.py",
        "disk_faults": "finetune/test_resume.py",
        "dry_run": "./test_flags.py",
        "late_check": "./test_waits.py",
        "finetuning": "finetune/test_finetune.py",
        "old_flags": "finetune/test_finetune.py",
        "output": "finetune/test_resume.py",
        "progress": "finetune/test_finetune.py",
        "ranks": "finetune/test_resume.py",
        "resuming": "finetune/test_resume.py",
        "run_fingerprint": "./test_run_checkpoints.py",
        "trainer": "./test_waits.py",
        "values": "./test_flags.py",
    },
}


@pytest.fixture(scope="module")
def modules(repository: Path) -> set[str]:
    """Their paths without the suffix, as in mmrole/base/files."""
    found = [path for package in ("mmrole", "data_utils") for path in repository.glob(f"{package}/**/*.py")]
    return {str(path.relative_to(repository).with_suffix("")) for path in found if path.name != "__init__.py"}


def mirrored(repository: Path, module: str) -> bool:
    folder, _, name = module.rpartition("/")
    return (repository / "tests" / folder / f"test_{name}.py").is_file()


def test_every_module_is_tested_somewhere(repository, modules):
    listed = {f"{folder}/{name}" for folder, names in ELSEWHERE.items() for name in names}
    assert sorted(module for module in modules - listed if not mirrored(repository, module)) == []
    assert sorted(listed - modules) == [], "no longer there"
    assert sorted(module for module in listed if mirrored(repository, module)) == [], "has a test file of its name"


def test_the_places_exist(repository):
    places = [(folder, place) for folder, names in ELSEWHERE.items() for place in names.values()]
    paths = [f"{folder}/{place[2:]}" if place.startswith("./") else place for folder, place in places]
    assert sorted(path for path in paths if not (repository / "tests" / path).is_file()) == []


def test_no_folder_of_tests_is_left_behind(repository):
    """A folder of tests has a package or a folder of scripts of its name; `inference` has the script of its name."""
    folders = {path.parent.relative_to(repository / "tests") for path in repository.glob("tests/**/test_*.py")}
    assert (
        sorted(
            str(folder)
            for folder in folders
            if not (repository / folder).is_dir() and not (repository / folder).with_suffix(".py").is_file()
        )
        == []
    )
