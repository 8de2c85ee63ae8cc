import copy
import itertools
import math

import numpy as np
import pytest
import torch

from sgma_hf import SgmaDataCollator, SgmaImageProcessor
from sgma_hf.training.collator import RowDraws, batches_by_size, draw_row, drop_modalities
from sgma_hf.training.row_sampling import ROW_KEY, RowKey


@pytest.fixture
def processor():
    """Leaves values as they are: mean 0, standard deviation 1."""
    return SgmaImageProcessor(
        ["rgb", "dsm"],
        [3, 1],
        rescale_factor=1.0,
        image_mean=[0.0, 0.0],
        image_std=[1.0, 1.0],
        reference_level="none",
        nodata=[[], [-1.0]],
    )


def make_row(index, size=8, epoch=0, **columns):
    """All columns hold the same ramp, so that what is cut and turned together stays equal."""
    ramp = np.arange(size * size, dtype=np.float32).reshape(size, size)
    row = {
        "id": f"row{index}",
        "rgb": np.stack([ramp] * 3, -1),
        "dsm": ramp.copy(),
        "label": (ramp % 200).astype(np.uint8),
    }
    return row | columns | {ROW_KEY: RowKey(epoch, index)}


def draws_with(**changes):
    return RowDraws(**(vars(draw_row(0, RowKey(0, 0), 2)) | changes))


def test_modalities_and_label_are_cropped_and_turned_together(processor):
    collator = SgmaDataCollator(processor, crop_size=5, seed=3)
    batch = collator([make_row(index) for index in range(6)])
    values, labels = batch["pixel_values"], batch["labels"]
    assert values.shape == (6, 4, 5, 5)
    for channel in range(4):
        assert torch.equal(values[:, channel], labels.float())
    windows = {tuple(row.flatten().tolist()) for row in labels}
    assert len(windows) == 6  # they are not all cut at one place


@pytest.mark.parametrize("shape", [(2, 5, 5), (4, 6)])
def test_a_row_is_flipped_and_then_turned_counterclockwise(processor, shape):
    collator, maps = SgmaDataCollator(processor), torch.arange(math.prod(shape)).reshape(shape)
    for vertical, horizontal, turns in itertools.product((False, True), (False, True), range(4)):
        axes = [axis for axis, flip in ((-2, vertical), (-1, horizontal)) if flip]
        kept = turns if shape[-1] == shape[-2] else 2 * (turns // 2)  # others would not keep their shape
        expected = torch.rot90(maps.flip(axes), kept, (-2, -1))
        draw = draws_with(flips=np.array([vertical, horizontal]), quarter_turns=turns)
        assert torch.equal(collator._turn(maps, draw), expected)


def test_flips_and_turns_cover_all_eight_orientations(processor):
    collator = SgmaDataCollator(processor)
    labels = collator([make_row(index, size=3) for index in range(64)])["labels"]
    assert len({tuple(row.flatten().tolist()) for row in labels}) == 8


def test_rows_that_are_not_square_keep_their_shape(processor):
    ramp = np.arange(12, dtype=np.float32).reshape(3, 4)
    row = make_row(0, rgb=None, dsm=ramp, label=ramp.astype(np.uint8))
    labels = SgmaDataCollator(processor)([row | {ROW_KEY: RowKey(0, index)} for index in range(32)])["labels"]
    assert labels.shape == (32, 3, 4)
    assert len({tuple(row.flatten().tolist()) for row in labels}) == 4


def test_choices_are_a_function_of_seed_epoch_and_row(processor):
    collator = SgmaDataCollator(processor, crop_size=4, modality_dropout=0.5, noise_std=0.1, gain_range=0.2, seed=1)
    rows = [make_row(index) for index in range(5)]
    batch = collator(rows)
    alone = collator([rows[3]])
    for key in ("pixel_values", "modality_mask", "labels", "sampling_noise"):
        assert torch.equal(batch[key][3:4], alone[key]), key
    next_epoch = collator([row | {ROW_KEY: row[ROW_KEY]._replace(epoch=1)} for row in rows])
    assert not torch.equal(batch["labels"], next_epoch["labels"])
    assert not torch.equal(batch["sampling_noise"], next_epoch["sampling_noise"])


def test_a_row_smaller_than_others_is_the_image_that_it_is_alone(processor):
    sizes = [(8, 8), (4, 4), (3, 5), (6, 2), (8, 3)]
    rows = []
    for index, (height, width) in enumerate(sizes * 4):
        row = make_row(index)
        rows.append(row | {name: row[name][:height, :width] for name in ("rgb", "dsm", "label")})
    collator = SgmaDataCollator(processor, crop_size=5, noise_std=0.1, gain_range=0.2)
    together = collator(rows)
    assert together["labels"].shape == (20, 5, 5)
    for index, row in enumerate(rows):
        alone = collator([row])
        height, width = alone["labels"].shape[1:]
        assert torch.equal(together["pixel_values"][index, :, :height, :width], alone["pixel_values"][0])
        padded = torch.full((5, 5), 255)
        padded[:height, :width] = alone["labels"][0]
        assert torch.equal(together["labels"][index], padded)
        covered = torch.zeros(2, 5, 5, dtype=torch.bool)
        covered[:, :height, :width] = True
        assert torch.equal(together["modality_mask"][index], covered)


def test_the_trainer_gets_rows_of_unequal_sizes_size_by_size(processor):
    rows = [make_row(index, size=size) for index, size in enumerate([8, 3, 8, 4, 3])]
    collator = SgmaDataCollator(processor, crop_size=5, with_row_index=True)
    batches = batches_by_size(collator(rows))
    assert [batch["row_index"].tolist() for batch in batches] == [[0, 2], [1, 4], [3]]
    assert [tuple(batch["labels"].shape[1:]) for batch in batches] == [(5, 5), (3, 3), (4, 4)]
    for batch in batches:
        assert batch["modality_mask"].ndim == 2  # no padding, so no mask per pixel
        alone = collator([rows[index] for index in batch["row_index"]])
        assert all(torch.equal(batch[name], values) for name, values in alone.items())


def test_a_row_that_comes_again_in_an_epoch_is_cut_anew(processor):
    rows = [make_row(2), make_row(2)]
    rows[1][ROW_KEY] = RowKey(0, 2, repeat=1)
    labels = SgmaDataCollator(processor, crop_size=4)(rows)["labels"]
    assert not torch.equal(labels[0], labels[1])


def test_an_epochs_own_dropout_takes_the_place_of_the_collators(processor):
    rows = [make_row(index, size=2) for index in range(20)]
    for row in rows:
        row[ROW_KEY] = row[ROW_KEY]._replace(dropout=(0.0, 0.999))
    batch = SgmaDataCollator(processor, modality_dropout=0.0, with_row_index=True)(rows)
    assert torch.equal(batch["modality_mask"], torch.tensor([[True, False]]).expand(20, 2))
    assert batch["row_index"].tolist() == list(range(20))


def test_padding_has_no_labels_and_no_modality(processor):
    rows = [make_row(0), make_row(1)]
    rows[1][ROW_KEY] = rows[1][ROW_KEY]._replace(padding=True)
    batch = SgmaDataCollator(processor)(rows)
    assert (batch["labels"][1] == 255).all() and not (batch["labels"][0] == 255).any()
    assert batch["modality_mask"].shape == (2, 2, 8, 8)
    assert batch["modality_mask"][0].all() and not batch["modality_mask"][1].any()


def test_switching_an_option_on_leaves_the_other_choices_as_they_were(processor):
    rows = [make_row(index) for index in range(4)]
    plain = SgmaDataCollator(processor, crop_size=4)(rows)
    noisy = SgmaDataCollator(processor, crop_size=4, noise_std=0.5, modality_dropout=0.9)(rows)
    assert torch.equal(plain["labels"], noisy["labels"])
    assert torch.equal(plain["sampling_noise"], noisy["sampling_noise"])


def test_dropout_has_its_own_probability_per_modality(processor):
    collator = SgmaDataCollator(processor, modality_dropout=[0.0, 0.75])
    mask = collator([make_row(index, size=2) for index in range(800)])["modality_mask"]
    assert mask[:, 0].all()
    assert abs(mask[:, 1].float().mean() - 0.25) < 0.05  # three standard deviations of 800 draws


def test_the_last_modality_is_never_dropped(processor):
    only = SgmaDataCollator(processor, modality_dropout=0.99)
    mask = only([make_row(index, size=2, rgb=None) for index in range(50)])["modality_mask"]
    assert torch.equal(mask, torch.tensor([[False, True]]).expand(50, 2))


@pytest.mark.parametrize(("keeper", "kept"), [(0.0, [True, False, False]), (0.99, [False, False, True])])
def test_where_all_would_go_one_of_those_present_stays(keeper, kept):
    draws = draws_with(dropout=np.zeros(3), keeper=keeper)
    present = np.array([True, False, True])
    assert drop_modalities(present, np.full(3, 0.5), draws).tolist() == kept


def test_gaps_stay_with_their_pixels_and_dropping_takes_the_whole_modality(processor):
    dsm = np.arange(16, dtype=np.float32).reshape(4, 4)
    dsm[0, 1] = -1  # nodata
    rows = [make_row(index, size=4, dsm=dsm) for index in range(40)]
    batch = SgmaDataCollator(processor, modality_dropout=[0.0, 0.5])(rows)
    assert batch["modality_mask"].shape == (40, 2, 4, 4)
    gaps = ~batch["modality_mask"][:, 1]
    whole = gaps.flatten(1).all(1)
    assert 8 < whole.sum() < 32
    # the pixel without height is the one whose label is 1, wherever it was turned to
    assert torch.equal(gaps[~whole], batch["labels"][~whole] == 1)


def test_gain_and_noise_touch_only_their_modality(processor):
    rows = [make_row(0, size=4)]
    plain = SgmaDataCollator(processor)(rows)["pixel_values"]
    changed = SgmaDataCollator(processor, gain_range=[0.0, 0.5])(rows)["pixel_values"]
    assert torch.equal(plain[:, :3], changed[:, :3])
    gain = (changed[0, 3].max() / plain[0, 3].max()).item()
    assert 0.5 <= gain <= 1.5 and gain != 1
    torch.testing.assert_close(changed[:, 3], plain[:, 3] * gain)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"modality_dropout": 1.0}, "less than 1"),
        ({"modality_dropout": [0.1, 0.1, 0.1]}, "one for each of"),
        ({"noise_std": -1.0}, "at least 0"),
        ({"crop_size": 0}, "at least 1"),
        ({"class_balanced_crops": True}, "there is no `crop_size`; give one"),
    ],
)
def test_impossible_options_are_refused(processor, option, message):
    with pytest.raises(ValueError, match=message):
        SgmaDataCollator(processor, **option)


def test_rows_keep_their_pixels_where_the_processor_would_resize(processor):
    resizing = copy.copy(processor)
    resizing.do_resize, resizing.size = True, {"height": 16, "width": 16}
    rows = [make_row(index) for index in range(4)]
    for options in ({}, {"crop_size": 5}):
        plain, resized = (SgmaDataCollator(one, **options)(rows) for one in (processor, resizing))
        assert plain.keys() == resized.keys() and all(torch.equal(plain[name], resized[name]) for name in plain)


def test_rows_that_cannot_be_trained_on_are_named(processor):
    collator = SgmaDataCollator(processor)
    with pytest.raises(ValueError, match="'row7' has no label"):
        collator([make_row(7, label=None)])
    with pytest.raises(ValueError, match="'row8' has none of the modalities"):
        collator([make_row(8, rgb=None, dsm=None)])
    with pytest.raises(ValueError, match="row9"):
        collator([make_row(9, dsm=np.zeros((8, 8, 2), np.float32))])
