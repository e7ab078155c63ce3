"""Statistics against the published counts and a hand count, tokens against the original trainer's, and figures."""

import csv
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from data_utils import describe
from data_utils.description.sample_tokens import SampleTokens
from data_utils.vocabularies import load_family
from mmrole.base.errors import UserError
from mmrole.base.files import read_json, write_json
from mmrole.base.tables import Table
from mmrole.data.prompts import split_pictures
from mmrole.qwen_vl import QWenTokenizer


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(data_root: Path, *arguments: object) -> None:
    describe.main(["--data_root", str(data_root), *map(str, arguments)])


@pytest.fixture(scope="module")
def encoder(real_vocabulary: Path) -> SampleTokens:
    return SampleTokens(load_family(real_vocabulary), Path)


def test_samples_are_encoded_as_by_the_published_trainer(shared: Path, encoder: SampleTokens):
    cases = read_json(shared / "golden/mmrole/preprocess_cases.json", dict)["cases"]
    cases = [case for case in cases if "_test.json[" in case["name"]]
    assert len(cases) == 8
    for case in cases:
        (_, question), (_, answer) = (turn.values() for turn in case["conversations"])
        turns = [{"value": split_pictures(question)[1]}, {"value": answer}]
        sequence, counts = encoder.encode({"image": "a.png", "conversations": turns})
        assert counts.total == len(sequence) == case["padded_from"]
        text = sequence.image_keys < 0
        assert sequence.input_ids[text].tolist() == [
            id_ for id_, is_text in zip(case["input_ids"], text, strict=False) if is_text
        ]
        assert (~text).sum() == 256
        # Loss lies on the first token of each of the three messages, on the reply, and on each end with its newline.
        assert case["n_targets"] == 3 + counts.reply + 3 * 2


@pytest.mark.parametrize(
    "text",
    [
        "\n\n x\r\n\ty",
        "a\n\u0301b\n船。\n\n**1.** x",
        " \n \n",
        "a\x1c\n\x1cb\n\x85c",
        "x\ud800\ny",
        "",
        "\n",
        "a.\n\n\nB's",
    ],
)
def test_lines_are_encoded_as_the_whole_text(encoder: SampleTokens, real_vocabulary: Path, text: str):
    tokenizer = QWenTokenizer(real_vocabulary)
    sequence, counts = encoder.encode({"image": "a.png", "conversations": [{"value": text}, {"value": text}]})
    ids = tokenizer.encode_ordinary(text)
    assert counts.reply == len(ids)
    assert sequence.input_ids[counts.prompt : counts.prompt + counts.reply].tolist() == ids
    head = sequence.input_ids.tolist().index(tokenizer.img_end_id) + 1
    user = tokenizer.encode_ordinary("\n" + text)
    assert sequence.input_ids[head : head + len(user) + 1].tolist() == [*user, tokenizer.im_end_id]


def test_published_tables(shared: Path, real_vocabulary: Path, tmp_path: Path):
    """All comments, and the talks of one file in eight: enough to meet the published figures."""
    root = tmp_path / "part"
    (root / "dialogues/in-distribution").mkdir(parents=True)
    (root / "profiles").symlink_to(shared / "mmrole/profiles")
    for kind in ("comment", "human-role", "inter-role"):
        (root / "dialogues/in-distribution" / kind).mkdir()
        files = sorted((shared / "mmrole/dialogues/in-distribution" / kind).iterdir())
        for path in files if kind == "comment" else files[::8]:
            (root / "dialogues/in-distribution" / kind / path.name).symlink_to(path)
    tests = shared / "mmrole/eval/in-test_answers/mmrole-agent"
    run(root, "--test_from", tests, "--tokenizer", real_vocabulary, "--output_dir", tmp_path / "out", "--no_figures")
    characters = {row["category"]: row["characters"] for row in rows_of(tmp_path / "out/characters.csv")}
    assert characters == {"fictional": "41", "historical and public": "11", "hypothetical": "20", "all": "72"}
    samples = {(row["split"], row["type"]): row for row in rows_of(tmp_path / "out/samples.csv")}
    assert samples["training", "comment"]["samples"] == "4795"
    assert samples["In-Test", "comment"]["samples"] == "72"
    assert float(samples["training", "inter-role"]["over 3,072"]) == 0
    trees = {row["type"]: row for row in rows_of(tmp_path / "out/trees.csv")}
    for kind, saving in (("comment", 1.0), ("human-role", 3.5), ("inter-role", 4.3)):
        assert float(trees[kind]["one by one / trees"]) == pytest.approx(saving, abs=0.15)
        assert int(trees[kind]["padded to 3,072"]) == 3072 * int(trees[kind]["samples"])


@pytest.mark.long
def test_published_savings(shared: Path, real_vocabulary: Path, tmp_path: Path):
    tests = shared / "mmrole/eval/in-test_answers/mmrole-agent"
    run(shared / "mmrole", "--test_from", tests, "--tokenizer", real_vocabulary, "--output_dir", tmp_path / "out")
    everything = rows_of(tmp_path / "out/trees.csv")[-1]
    assert everything["samples"] == "72551"
    assert float(everything["one by one / trees"]) == pytest.approx(3.5, abs=0.05)
    assert float(everything["padded / trees"]) == pytest.approx(6.9, abs=0.05)


def test_a_small_world_counted_by_hand(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run(small_world, "--output_dir", tmp_path / "out", "--category", "Lighthouse=hypothetical")
    characters = {row["category"]: list(row.values())[1:] for row in rows_of(tmp_path / "out/characters.csv")}
    assert characters == {
        "fictional": ["3", "0", "3", "6", "6", "4"],
        "historical and public": ["1", "0", "1", "2", "2", "0"],
        "hypothetical": ["0", "2", "2", "4", "4", "4"],
        "all": ["4", "2", "6", "12", "12", "8"],
    }
    images = {row["source"]: list(row.values())[1:] for row in rows_of(tmp_path / "out/images.csv")}
    assert images == {"COCO": ["1", "10", "10", "2"], "stills": ["1", "2", "2", "6"], "all": ["2", "12", "12", "8"]}
    samples = {(row["split"], row["type"]): row for row in rows_of(tmp_path / "out/samples.csv")}
    counted = {key: (row["dialogues"], row["turns a dialogue"], row["samples"]) for key, row in samples.items()}
    assert counted == {
        ("training", "comment"): ("4", "2.0", "4"),
        ("training", "human-role"): ("4", "6.0", "12"),
        ("training", "inter-role"): ("2", "5.0", "10"),
        ("training", "all"): ("10", "4.2", "26"),
        ("In-Test", "comment"): ("4", "2.0", "4"),
        ("In-Test", "human-role"): ("4", "6.0", "4"),
        ("In-Test", "inter-role"): ("2", "5.0", "2"),
        ("In-Test", "all"): ("10", "4.2", "10"),
        ("Out-Test", "comment"): ("4", "2.0", "4"),
        ("Out-Test", "human-role"): ("4", "4.0", "4"),
        ("Out-Test", "inter-role"): ("4", "4.0", "4"),
        ("Out-Test", "all"): ("12", "3.3333", "12"),
    }
    replies = [len(f"{name} says 0.") for name in ("Ana", "Bo Li", "Cai", "小船")]
    assert float(samples["In-Test", "comment"]["reply characters"]) == sum(replies) / 4
    printed = capsys.readouterr().out
    assert "10 dialogues whose generation failed are left out." in printed
    assert "without --tokenizer" in printed
    assert not (tmp_path / "out/trees.csv").exists()


def test_figures_and_page_are_written_alike_each_time(small_world: Path, mini_vocabulary: Path, tmp_path: Path):
    for name in ("a", "b"):
        run(small_world, "--output_dir", tmp_path / name, "--tokenizer", mini_vocabulary)
    written = {path.name for path in (tmp_path / "a").iterdir()}
    figures = {f"{name}.{suffix}" for name in ("composition", "lengths", "trees") for suffix in ("png", "svg")}
    assert written == {*figures, "statistics.md", "characters.csv", "images.csv", "samples.csv", "trees.csv"}
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in figures:
        if name.endswith("svg"):
            assert "svg" in ElementTree.parse(tmp_path / "a" / name).getroot().tag
        else:
            with Image.open(tmp_path / "a" / name) as image:
                assert min(image.size) > 400
                assert len(image.convert("RGB").getcolors(1 << 20)) > 100  # not an empty page
    page = (tmp_path / "a/statistics.md").read_text("utf-8")
    assert "| inter-role | 10 | 30,720 |" in page


def test_a_world_of_comments_out_of_distribution_alone(small_world: Path, mini_vocabulary: Path, tmp_path: Path):
    for path in [*small_world.glob("dialogues/in-*/**/*.json"), *small_world.glob("dialogues/out-*/*-role.json")]:
        path.unlink()
    run(small_world, "--output_dir", tmp_path / "out", "--tokenizer", mini_vocabulary)
    assert [row["split"] for row in rows_of(tmp_path / "out/samples.csv")] == ["Out-Test", "Out-Test"]
    assert not (tmp_path / "out/trees.png").exists()


def test_a_world_whose_dialogues_all_failed(small_world: Path):
    for path in small_world.glob("dialogues/**/*.json"):
        write_json(path, [record | {"conversations": []} for record in read_json(path)])
    with pytest.raises(UserError, match="every dialogue's generation failed"):
        run(small_world)


def test_tables_in_three_forms():
    table = Table("t", "A title", ["name", "count", "mean"], [["x", 1234, 0.25], ["long name", 5, None]])
    assert table.text() == "A title\n  name       count  mean\n  x          1,234   0.2\n  long name      5"
    assert table.markdown().splitlines()[2:] == [
        "| name | count | mean |",
        "| --- | ---: | ---: |",
        "| x | 1,234 | 0.2 |",
        "| long name | 5 |  |",
    ]
    assert table.csv() == "name,count,mean\nx,1234,0.25\nlong name,5,\n"


def test_what_a_person_got_wrong(small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(small_world, "--output_dir", tmp_path / "out", "--no_figures")
    assert not list((tmp_path / "out").glob("*.png"))
    with pytest.raises(UserError, match="exists already"):
        run(small_world, "--output_dir", tmp_path / "out")
    with pytest.raises(UserError, match=r"^--tokenizer .*: .*; give the directory of a checkpoint"):
        run(small_world, "--tokenizer", tmp_path)
    with pytest.raises(UserError, match="must be SERIES=CATEGORY with one of fictional, "):
        run(small_world, "--category", "Harbour=invented")
    with pytest.raises(SystemExit, match="2"):
        run(small_world, "--max_len", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="matplotlib is not installed"):
        run(small_world, "--output_dir", tmp_path / "figures")


def test_another_model_counts_images_by_their_size(
    small_world: Path, tiny_vlm, tmp_path: Path, mini_vocabulary, capsys
):
    model = tiny_vlm("qwen3_vl")
    with pytest.raises(UserError, match=r" images cannot be read, and their tokens follow from their size: "):
        run(small_world, "--tokenizer", model, "--image_dir", tmp_path)
    dialogues = [dialogue for file in small_world.glob("dialogues/*/*/*.json") for dialogue in read_json(file)]
    for image in {dialogue["image"] for dialogue in dialogues}:
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 90)).save(tmp_path / image, "PNG")
    capsys.readouterr()
    totals = []
    for name, flags in (("of", ("--image_dir", tmp_path)), ("without", ("--no_images",))):
        run(small_world, "--tokenizer", model, "--output_dir", tmp_path / name, "--no_figures", *flags)
        (row,) = [row for row in rows_of(tmp_path / name / "trees.csv") if row["type"] == "all"]
        totals.append([int(number) for number in list(row.values())[3:5]])
    frame = 1  # two tokens around an image
    (alone, trees), (alone_without, trees_without) = totals
    assert alone - alone_without == 26 * (10 + 2 * frame)  # 26 training samples, 10 dialogues
    assert trees - trees_without == 10 * (10 + 2 * frame)
    printed = capsys.readouterr().out
    assert "those of an image follow from its size" in printed
    assert "those of images are not counted (--no_images)" in printed
    for tokenizer in ((), ("--tokenizer", mini_vocabulary)):
        with pytest.raises(UserError, match=r"^--no_images"):
            run(small_world, "--no_images", *tokenizer)


def test_help_loads_neither_torch_nor_matplotlib(repository: Path):
    code = (
        "import sys; from data_utils import describe; print({'torch', 'matplotlib', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=repository, text=True) == "set()\n"
    done = subprocess.run([sys.executable, "-m", "data_utils.describe", "--help"], cwd=repository, capture_output=True)
    assert done.returncode == 0
    assert b"--tokenizer" in done.stdout
