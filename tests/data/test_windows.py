"""Windows that cover an image."""

import numpy as np
import pytest

from sgma_hf.data.windows import Window, blocks, cover, window_starts


@pytest.mark.parametrize(
    ("length", "size", "stride", "starts"),
    [
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (4, 4, 2, [0]),
        (3, 4, 4, [0]),
        (1, 512, 384, [0]),
        (9, 4, 4, [0, 4, 5]),
    ],
)
def test_last_window_ends_with_the_image(length, size, stride, starts):
    assert window_starts(length, size, stride) == starts


def test_windows_that_leave_gaps_are_refused():
    for size, stride in ((0, 1), (4, 5), (4, 0)):
        with pytest.raises(ValueError, match=f"Windows of {size} pixels every {stride}"):
            window_starts(10, size, stride)


def test_an_image_is_covered_row_by_row():
    assert list(cover((3, 6), 4, 3)) == [Window(0, 0, 3, 4), Window(0, 2, 3, 4)]
    assert list(cover((3, 6), None)) == [Window(0, 0, 3, 6)]


def test_a_window_is_cut_to_the_image_and_moved():
    assert Window(-2, 3, 5, 9).inside((4, 8)) == Window(0, 3, 3, 5)
    assert Window(6, 0, 2, 8).inside((4, 8))[2:] == (0, 8)  # below the image
    assert Window(1, 2, 3, 4).moved(-1, 5) == Window(0, 7, 3, 4)


def test_blocks_cover_an_image_once():
    assert list(blocks((5, 3), 2)) == [Window(0, 0, 2, 3), Window(2, 0, 2, 3), Window(4, 0, 1, 3)]
    seen = np.zeros((7, 11), dtype=int)
    for block in blocks(seen.shape, 3, 4):
        seen[block.slices] += 1
    assert (seen == 1).all()
