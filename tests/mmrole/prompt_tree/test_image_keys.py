"""Image keys: written and read back, whatever the images' sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrole.prompt_tree.image_keys import ImagePlace, feature_rows, first_viewers, image_keys, images_shown

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
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"{rows} rows of features, and 2 positions"):
            feature_rows(image_keys(4, [ImagePlace([(1, 3)], 9)]), {9: rows, 5: 4})


@given(sizes=SIZES, gap=st.integers(0, 2))
def test_rows_are_first_seen_by_the_first_row_of_their_image(sizes, gap):
    spans, start, first = [], gap, list(range(gap))
    for number, rows in sizes.items():
        spans.append(ImagePlace([(start, start + rows)], number))
        first += [start] * rows + list(range(start + rows, start + rows + gap))
        start += rows + gap
    assert first_viewers(image_keys(start, spans)).tolist() == first


def test_an_image_that_is_shown_twice_or_in_two_parts_is_two():
    rows = np.array([5, 6, 7]) << 20
    assert first_viewers(np.array([rows[0], rows[0] + 1, rows[0], rows[0] + 1])).tolist() == [0, 0, 2, 2]
    assert first_viewers(np.array([rows[1], rows[1] + 1, -1, rows[1] + 2, rows[1] + 3])).tolist() == [0, 0, 2, 3, 3]
