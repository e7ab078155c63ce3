"""Steps as a data set: where samples come from, and images that go while a run reads them."""

import shutil
from dataclasses import replace

import pytest
from torch.utils.data import DataLoader

from mmrole.base.errors import UserError
from mmrole.training.encoding import SampleEncoder
from mmrole.training.packing import group_samples
from mmrole.training.steps import Packing, TrainingSteps, checked, only

PACKING = Packing(samples_per_step=8, rank=0, world_size=1, max_batch_tokens=4000, seed=0, prompt_tree=True)


@pytest.fixture
def steps(byte_family, conversations, picture_dir, tmp_path):
    """Nineteen samples whose pictures can be removed."""
    own = shutil.copytree(picture_dir, tmp_path / "images")
    moved = [
        replace(
            sample,
            turns=tuple(
                turn._replace(
                    content=tuple(
                        part if isinstance(part, str) else part._replace(image=own / part.image.name)
                        for part in turn.content
                    )
                )
                for turn in sample.turns
            ),
        )
        for sample in conversations
    ]
    encoded = list(SampleEncoder(byte_family, max_length=1000).encode_all(moved))
    return TrainingSteps(encoded, [sample.where for sample in moved], group_samples(encoded), PACKING, byte_family)


def test_places_are_those_of_the_batches(steps):
    for number in range(5):
        bins = steps[number].bins
        assert sorted(map(str, steps.places_of(number))) == sorted(
            str(steps.places[index]) for bin_ in bins for index in bin_
        )
    assert sorted(str(place) for number in range(3) for place in steps.places_of(number)) == sorted(
        map(str, steps.places)
    )


def test_an_image_that_has_gone_is_named(steps, tmp_path):
    (tmp_path / "images/0.png").unlink()
    with pytest.raises(UserError, match=r"images/0\.png.*could be read when the run began"):
        [steps[number] for number in range(3)]


def test_an_image_that_was_exchanged_is_named(steps, tmp_path):
    shutil.copy(tmp_path / "images/1.png", tmp_path / "images/0.png")
    with pytest.raises(UserError, match=r"images/0\.png is not what it was when the run began"):
        [steps[number] for number in range(3)]


def test_a_worker_names_an_image_in_a_line(steps, tmp_path):
    (tmp_path / "images/0.png").unlink()
    loader = DataLoader(steps, batch_size=1, collate_fn=only, num_workers=1)
    with pytest.raises(UserError, match=r"images/0\.png") as error:
        list(map(checked, loader))
    assert "\n" not in str(error.value)
