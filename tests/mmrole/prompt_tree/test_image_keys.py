"""Image keys: written and read back, whatever the images' sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.prompt_tree.image_keys import ImagePlace, feature_rows, image_keys, images_shown

SIZES = st.dictionaries(st.integers(0, 2**40), st.integers(1, 40), min_size=1, max_size=5)


@given(sizes=SIZES, gap=st.integers(0, 3))
def test_every_position_finds_its_row(sizes, gap):
    spans, start = [], gap
    for number, rows in sizes.items():
        spans.append(ImagePlace([(start, start + rows)], number))
        start += rows + gap
    keys = image_keys(start, spans)
    assert images_shown(keys) == sorted(sizes)
    laid = {number: sizes[number] for number in reversed(sizes)}
    found = feature_rows(keys, laid)
    features = np.array([(number, row) for number, rows in laid.items() for row in range(rows)])
    shown = [(number, row) for number, rows in sizes.items() for row in range(rows)]
    assert features[found[found >= 0]].tolist() == [list(each) for each in shown]
    assert (found == -1).sum() == gap * (len(sizes) + 1)


def test_text_shows_nothing_and_other_images_are_refused():
    assert image_keys(5, []) is None
    assert feature_rows(np.full(3, -1), {}).tolist() == [-1, -1, -1]
    with pytest.raises(KeyError):
        feature_rows(image_keys(4, [ImagePlace([(1, 3)], 9)]), {8: 2})
