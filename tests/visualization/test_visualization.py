"""Colours of class ids, and what stands in the panels of a board."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.visualization.boards import plot_modality_board, plot_sample
from sgma_hf.visualization.palette import class_palette, colorize, default_palette, recolor


PALETTE = [[1, 2, 3], [40, 50, 60]]


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def panel(figure, title, occurrence=0):
    return [axes for axes in figure.axes if axes.get_title() == title][occurrence]


def shown(axes):
    """The picture of a panel as it is, RGBA or single values."""
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def is_hatched(axes):
    return axes.patch.get_hatch() is not None


def heading_texts(figure):
    return [text.get_text() for text in figure.texts]


def test_class_ids_become_their_colours_and_255_that_of_ignored():
    ids = np.array([[0, 1], [255, 0]], dtype=np.uint8)
    painted = colorize(ids, PALETTE, ignore_color=(9, 9, 9))
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[1, 2, 3], [40, 50, 60]], [[9, 9, 9], [1, 2, 3]]]
    np.testing.assert_array_equal(colorize(ids.astype(np.int64), PALETTE, ignore_color=(9, 9, 9)), painted)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[0, 2]]), "0 to 2, but `palette` has 2"),
        (np.array([[-1, 0]]), "from -1"),
        (np.array([[0.0, 1.0]]), "expected integers"),
        (np.zeros((2, 2, 3), dtype=np.uint8), "expected integers of shape"),
    ],
)
def test_ids_that_have_no_colour_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        colorize(ids, PALETTE)


def test_default_palette_tells_any_number_of_classes_apart():
    assert default_palette(2) == [[187, 187, 187], [213, 94, 0]]
    colors = default_palette(255)
    assert len(colors) == 255
    assert all(0 <= part <= 255 for color in colors for part in color)
    assert len({tuple(color) for color in colors[:60]}) == 60
    assert colorize(np.array([[3]])).tolist() == [[[0, 158, 115]]]


def test_classes_of_known_names_have_the_colours_that_people_expect():
    water, ground, grass, tree, roof = class_palette(["water", "ground", "low_vegetation", "Trees", "BuildingRoof"])
    assert max(water) == water[2] and max(grass) == grass[1] and max(tree) == tree[1] and max(roof) == roof[0]
    assert sum(tree) < sum(grass) and len(set(ground)) == 1
    assert class_palette(["class_0", "class_1"]) == default_palette(2)
    assert class_palette(["no water"]) == default_palette(1)
    first, second = class_palette(["oak forest", "pine forest"])
    assert first != second and max(second) == second[1]
    assert class_palette(["forest", "water"], [[1, 2, 3], None]) == [[1, 2, 3], water]
    # What has no known name has none of the colours that are taken.
    many = class_palette(["water", "roof", "soil", *(f"kind {index}" for index in range(60))])
    assert len(set(map(tuple, many))) == 63


def test_colours_are_changed_by_name():
    names = ["road", "roof", "water", "tree", "car"]
    palette = recolor(names, None, '[{"name": "roof", "color": "#010203"}]')
    assert palette == [[1, 2, 3] if name == "roof" else class_palette([name])[0] for name in names]
    assert recolor(names, palette, '[{"name": "car", "color": "#040506"}]') == [*palette[:4], [4, 5, 6]]
    with pytest.raises(ValueError, match="`--classes` has 'rood'; did you mean"):
        recolor(names, None, '[{"name": "rood", "color": "#010203"}]')
    with pytest.raises(ValueError, match="`--classes` has no colours"):
        recolor(names, None, '["road"]')


def test_first_colours_differ_in_lightness_or_hue_for_the_colour_blind():
    # Deuteranopia by the matrix of Machado, Oliveira and Fernandes (2009) at severity 1, in linear RGB.
    matrix = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    linear = (np.array(default_palette(9)) / 255) ** 2.2
    seen = np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)
    distance = np.abs(seen[:, None] - seen[None]).sum(-1)
    assert distance[~np.eye(9, dtype=bool)].min() > 0.2


def test_board_shows_gaps_missing_modalities_and_accuracy():
    rgb = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    dsm = np.ma.MaskedArray(np.array([[10.0, 11.0], [12.0, -9999.0]]), mask=[[False, True], [False, False]])
    label = np.array([[0, 1], [1, 255]], dtype=np.uint8)
    figure = plot_sample(
        {"rgb": rgb, "dsm": dsm, "nir": None},
        label=label,
        predictions={"all": np.array([[0, 1], [0, 0]]), "without dsm": np.array([[0, 1], [1, 255]])},
        robustness={"Reliance on each modality": {"rgb": np.array([[0.25, 0.75], [np.nan, 1.0]])}},
        nodata={"dsm": [-9999.0]},
        units={"dsm": "m"},
        class_names=["ground", "roof"],
        palette=PALETTE,
        title="A scene",
    )
    assert titles(figure)[:6] == ["rgb", "dsm", "nir", "labels", "all", "without dsm"]
    assert "A scene" in heading_texts(figure)
    np.testing.assert_array_equal(shown(panel(figure, "rgb"))[..., :3], rgb)
    assert (shown(panel(figure, "rgb"))[..., 3] == 255).all()
    assert shown(panel(figure, "dsm"))[..., 3].tolist() == [[255, 0], [255, 0]]  # masked, and the nodata value
    assert is_hatched(panel(figure, "dsm"))
    # 10 and 12 metres are what is left: percentiles 2 and 98 between them
    assert panel(figure, "dsm").get_xlabel() == "10.04 to 11.96 m; 50% no data"
    missing = panel(figure, "nir")
    assert not missing.images and is_hatched(missing)
    assert [text.get_text() for text in missing.texts] == ["missing"]
    assert shown(panel(figure, "labels"))[0, 1].tolist() == [40, 50, 60, 255]
    assert shown(panel(figure, "labels"))[1, 1, 3] == 0
    assert panel(figure, "all").get_xlabel() == "66.7% of pixels right"
    assert panel(figure, "without dsm").get_xlabel() == "100.0% of pixels right"
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["ground", "roof", "no data"]


def test_robustness_is_drawn_between_0_and_1_with_a_colour_bar():
    shares = np.array([[0.25, 0.75], [np.nan, 0.5]], dtype=np.float32)
    figure = plot_sample({"rgb": np.zeros((2, 2, 3), np.uint8)}, robustness={"Reliance": {"height": shares}})
    image = panel(figure, "height").images[0]
    assert image.get_clim() == (0, 1)
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), [[False, False], [True, False]])
    assert panel(figure, "height").get_xlabel() == "mean 0.50"
    assert image.colorbar is not None
    assert [tick.get_text() for tick in image.colorbar.ax.get_yticklabels()] == [
        "0.00",
        "0.25",
        "0.50",
        "0.75",
        "1.00",
    ]


def test_many_bands_and_more_than_8_bits_are_stretched():
    cube = np.stack([np.full((10, 10), value, dtype=np.uint16) for value in range(12)], axis=-1)
    cube[..., 0] += np.arange(100, dtype=np.uint16).reshape(10, 10) * 40
    figure = plot_sample({"s2": cube})
    axes = panel(figure, "s2")
    assert axes.get_xlabel() == "bands 1, 7, 12"  # 0, 5.5 and 11: halves go to the even number
    red = shown(axes)[..., 0]
    assert red.min() == 0 and red.max() == 255
    assert (shown(axes)[..., 1] == 0).all()  # a flat band


def test_classes_without_a_name_or_a_colour_are_refused():
    rgb = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="class 2, but there are 2 names"):
        plot_sample({"rgb": rgb}, label=np.array([[0, 2], [0, 0]]), palette=PALETTE)
    with pytest.raises(ValueError, match="`images` is empty"):
        plot_sample({})


def test_figure_is_written_as_a_picture_and_as_pdf(tmp_path):
    figure = plot_sample({"rgb": np.zeros((8, 12, 3), np.uint8), "dsm": None}, label=np.zeros((8, 12), np.uint8))
    figure.savefig(tmp_path / "board.png", dpi=50)
    figure.savefig(tmp_path / "board.pdf")
    assert (tmp_path / "board.pdf").read_bytes().startswith(b"%PDF")
    width, height = figure.get_size_inches()
    assert width > height


@pytest.fixture
def sample():
    generator = np.random.default_rng(0)
    dsm = generator.uniform(100, 110, (40, 44)).astype(np.float32)
    dsm[:, 30:] = -9999
    return {
        "rgb": generator.integers(1, 255, (40, 44, 3)).astype(np.uint8),
        "dsm": dsm,
        "sar": generator.normal(-15, 5, (20, 22, 2)).astype(np.float32),
    }


def processor_of(model):
    return SgmaImageProcessor(model.config.modalities, model.config.modality_channels)


def test_board_of_a_model_holds_what_the_model_predicts(sample):
    model = tiny_model()
    processor = processor_of(model)
    label = np.zeros((40, 44), dtype=np.uint8)
    figure = plot_modality_board(model, processor, sample, label=label)
    names = ["rgb", "dsm", "sar", "labels", "all modalities", "without rgb", "without dsm", "without sar"]
    assert titles(figure)[:12] == [*names, "errors: all modalities", "rgb", "dsm", "sar"]
    inputs = processor(images=[sample | {"rgb": None}], segmentation_maps=[label])
    del inputs["labels"]
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = processor.post_process_semantic_segmentation(outputs)
    palette = class_palette(model.config.class_names)
    covered = expected.numpy() != 255
    np.testing.assert_array_equal(
        shown(panel(figure, "without rgb"))[covered][:, :3], colorize(expected.numpy(), palette)[covered]
    )
    with torch.no_grad():
        whole = processor(images=[sample], segmentation_maps=[label])
        del whole["labels"]
        (shares,) = processor.post_process_robustness(model(**whole), modality_mask=whole["modality_mask"])
    for index, name in enumerate(("rgb", "dsm", "sar")):
        np.testing.assert_allclose(shown(panel(figure, name, 1)), shares[index], atol=1e-6)
    assert not shown(panel(figure, "dsm", 1))[:, 40:].any()  # where the height model ends


def test_board_shows_errors_and_reliance_by_stage(sample):
    model = tiny_model()
    processor = processor_of(model)
    figure = plot_modality_board(model, processor, sample, subsets=[["rgb", "dsm", "sar"]], per_stage=True)
    assert titles(figure).count("dsm") == 5 and not any("errors" in name for name in titles(figure))
    headings = [text.get_text() for text in figure.texts]
    assert "Reliance on each modality (all modalities; stage 4, cells of 32 pixels)" in headings
    with torch.no_grad():
        inputs = processor(images=[sample])
        outputs = model(**inputs)
    for stage in range(4):
        mask = inputs["modality_mask"]
        (shares,) = processor.post_process_robustness(outputs, stage=stage, modality_mask=mask)
        np.testing.assert_allclose(shown(panel(figure, "dsm", stage + 1)), shares[1], atol=1e-6)
    truth, ids = np.array([[0, 1], [2, 255]]), np.array([[0, 2], [2, 1]])
    figure = plot_sample({"rgb": np.zeros((2, 2, 3), np.uint8)}, label=truth, predictions={"all": ids})
    errors = panel(figure, "errors: all")
    assert errors.get_xlabel() == "33.3% wrong (orange)"
    assert shown(errors)[..., 3].tolist() == [[255, 255], [255, 0]]
    assert shown(errors)[0, 0, :3].tolist() == shown(errors)[1, 0, :3].tolist() != shown(errors)[0, 1, :3].tolist()


def test_board_takes_the_subsets_that_are_asked_for_and_keeps_the_mode(sample):
    model = tiny_model().train()
    figure = plot_modality_board(
        model, processor_of(model), {"rgb": sample["rgb"], "sar": sample["sar"]}, subsets=[["sar"], ["rgb", "sar"]]
    )
    assert titles(figure)[:6] == ["rgb", "dsm", "sar", "sar alone", "all modalities", "sar"]
    assert [text.get_text() for text in panel(figure, "dsm").texts] == ["missing"]
    assert (shown(panel(figure, "sar", 1)) == 1).all()
    assert model.training
    with pytest.raises(ValueError, match=r"holds \['dsm'\]; expected names among those that the sample has"):
        plot_modality_board(model, processor_of(model), {"rgb": sample["rgb"]}, subsets=[["dsm"]])


def test_board_uses_the_palette_and_names_of_the_checkpoint(sample):
    model = tiny_model()
    model.config.palette = [[10 * index, 0, 200] for index in range(model.config.num_labels)]
    figure = plot_modality_board(model, processor_of(model), sample, subsets=[["rgb"]])
    colors = {tuple(color) for color in shown(panel(figure, "rgb alone"))[..., :3].reshape(-1, 3).tolist()}
    assert colors <= {tuple(color) for color in model.config.palette}


def test_matplotlib_is_asked_for_by_the_name_of_its_extra():
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np\n"
        "from sgma_hf.visualization.boards import colorize, plot_sample\n"
        "colorize(np.zeros((2, 2), int))\n"
        "try:\n"
        "    plot_sample({'rgb': np.zeros((2, 2, 3), np.uint8)})\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'sgma-hf[viz]'" in run.stdout, run.stderr


@pytest.mark.parametrize("periods", [[365.25], None])  # a model without dates takes a series as a set
def test_a_board_shows_the_date_of_a_series_that_sees_most(periods):
    model = tiny_model(date_periods=periods)
    dsm = [np.full((32, 32), value, np.float32) for value in (5.0, 7.0, 9.0)]
    dsm[0][:8], dsm[1][0, 0], dsm[2][:] = np.nan, np.nan, np.nan
    dsm[1][16:] = 8
    sample = {"rgb": np.zeros((32, 32, 3), np.uint8), "dsm": dsm, "dsm_dates": ["2019-01-01", None, "2019-03-01"]}
    figure = plot_modality_board(model, SgmaImageProcessor(["rgb", "dsm", "sar"], [3, 1, 2]), sample)
    picture = shown(panel(figure, "dsm"))
    assert is_hatched(panel(figure, "sar")) and picture.shape[:2] == (32, 32)
    assert len(np.unique(picture[1:][np.isfinite(picture[1:]).all(-1) if picture.ndim == 3 else ...])) > 1
