"""Scores on a labelled scene: a map, a model per combination, and reliance by class."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raster_scenes import CLASSES, HeightClasses, height_classes, height_processor, write_tiff
from tiny_models import spread_weights, tiny_model
from vector_files import write_vectors

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands.evaluate import main
from sgma_hf.data.class_maps import ClassMap
from sgma_hf.evaluation.scenes import evaluate_scene, score_map
from sgma_hf.prediction.maps import predict_raster
from sgma_hf.publishing.record import TrainingRecord
from sgma_hf.publishing.results import results_to_markdown
from sgma_hf.rasters.polygons import PolygonLabels


rasterio_open = pytest.importorskip("rasterio").open
shapely = pytest.importorskip("shapely")


def test_map_is_scored_where_it_and_the_label_hold_something(tmp_path):
    labels = np.array([[[0, 0, 1, 255], [1, 1, 2, 2]]], dtype=np.uint8)
    found = np.array([[[0, 1, 1, 0], [1, 1, 255, 2]]], dtype=np.uint8)
    truth = write_tiff(tmp_path / "truth.tif", labels)
    made = write_tiff(tmp_path / "map.tif", found, nodata=255)
    shares = write_tiff(
        tmp_path / "shares.tif", np.stack([found[0] * 0 + 0.25, found[0] * 0 + 0.75]).astype("float32")
    )
    scores = score_map(made, truth, 3, robustness=shares)
    assert scores["pixels"] == 6 and scores["uncovered_share"] == pytest.approx(1 / 7)
    assert scores["iou"] == pytest.approx([1 / 2, 3 / 4, 1])
    assert scores["robustness_per_class"] == [[0.25, 0.75]] * 3
    with pytest.raises(ValueError, match=r"truth\.tif` holds 2; expected class ids from 0 to 1"):
        score_map(made, truth, 2)


def test_label_on_another_grid_is_picked_not_blended(tmp_path):
    labels = np.kron(np.array([[0, 2], [2, 0]], dtype=np.uint8), np.ones((2, 2), dtype=np.uint8))[None]
    truth = write_tiff(tmp_path / "truth.tif", labels)
    made = write_tiff(tmp_path / "map.tif", np.kron(labels[0], np.ones((2, 2), np.uint8))[None], pixel=0.5)
    assert score_map(made, truth, 3)["accuracy"] == 1


def test_labels_of_floating_point_are_whole_numbers_or_refused(tmp_path):
    made = write_tiff(tmp_path / "map.tif", np.array([[[0, 1, 2, 1]]], dtype=np.uint8))
    truth = write_tiff(tmp_path / "truth.tif", np.array([[[0.0, 1.0, 0.0, np.nan]]]))  # as gdal_rasterize writes
    scores = score_map(made, truth, 3)
    assert scores["pixels"] == 3 and scores["accuracy"] == pytest.approx(2 / 3)
    assert score_map(truth, made, 3)["accuracy"] == pytest.approx(2 / 3)
    blended = write_tiff(tmp_path / "blended.tif", np.array([[[0.0, 1.5, 0.0, 1.0]]]))
    with pytest.raises(ValueError, match=r"blended\.tif is no label: it holds fractions such as 1\.5"):
        score_map(made, blended, 3)


def test_label_of_several_bands_is_refused_unless_one_is_chosen(tmp_path):
    ids = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    made = write_tiff(tmp_path / "map.tif", ids[None], nodata=255)
    # Colours whose first band would pass for ids.
    colours = write_tiff(tmp_path / "colours.tif", np.stack([0 * ids, ids, ids]))
    for pair in ((made, colours), (colours, made)):
        with pytest.raises(ValueError, match=r"colours\.tif has 3 bands; expected one .*`sgma-hf convert-rasters"):
            score_map(*pair, 3)
    assert score_map(made, f"{colours}:2", 3)["accuracy"] == 1
    with pytest.raises(ValueError, match=r"colours\.tif:2,3 has 2 bands"):
        score_map(made, f"{colours}:2,3", 3)
    model = HeightClasses()
    with pytest.raises(ValueError, match=r"has 3 bands"):
        evaluate_scene(model, height_processor(), {"dsm": made}, colours)
    assert model.tiles == 0


def test_scaled_label_holds_what_its_header_says(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    made = write_tiff(tmp_path / "map.tif", np.array([[[0, 1, 2, 2]]], dtype=np.uint8))
    label = write_tiff(tmp_path / "label.tif", np.array([[[1, 2, 3, 9]]], dtype=np.uint8), nodata=9)
    with rasterio.open(label, "r+") as file:
        file.offsets = (-1.0,)
    scores = score_map(made, label, 3)
    assert (scores["pixels"], scores["accuracy"]) == (3, 1)
    assert score_map(made, label, 3, classes=ClassMap.of_entries(["a", "b", "c"])) == scores


def test_indices_of_a_palette_are_class_ids(tmp_path):
    ids = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    made = write_tiff(tmp_path / "map.tif", ids[None], nodata=255, crs=None)
    for suffix in ("png", "tif"):
        image = Image.fromarray(ids)
        image.putpalette([90, 20, 30] * 256)
        image.save(tmp_path / f"palette.{suffix}")
        assert score_map(made, tmp_path / f"palette.{suffix}", 3)["iou"] == [1, 1, 1]
    np.save(tmp_path / "label.npy", ids)
    assert score_map(made, tmp_path / "label.npy", 3)["iou"] == [1, 1, 1]


def test_label_of_another_size_without_a_place_is_picked_not_blended(tmp_path):
    label = np.array([[[0, 2, 255], [2, 0, 1]]], dtype=np.uint8)
    made = write_tiff(tmp_path / "map.tif", np.kron(label[0], np.ones((2, 2), np.uint8))[None], crs=None)
    for suffix in ("tif", "png"):
        truth = tmp_path / f"truth.{suffix}"
        if suffix == "png":
            Image.fromarray(label[0]).save(truth)
        else:
            write_tiff(truth, label, crs=None)
        scores = score_map(made, truth, 3)
        assert (scores["accuracy"], scores["pixels"]) == (1, 20)
        scores = score_map(truth, made, 3)
        assert (scores["accuracy"], scores["pixels"]) == (1, 5)


def test_every_combination_is_scored_and_reliance_is_told_by_class(tmp_path):
    model = spread_weights(tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1])).eval()
    processor = SgmaImageProcessor(["rgb", "dsm"], [3, 1])
    generator = np.random.default_rng(0)
    rgb = write_tiff(tmp_path / "rgb.tif", generator.integers(1, 255, (3, 64, 64)).astype(np.uint8))
    dsm = write_tiff(tmp_path / "dsm.tif", generator.uniform(0, 20, (1, 64, 64)).astype(np.float32))
    truth = np.repeat(np.array([0, 1], dtype=np.uint8), 32)[None, None].repeat(64, axis=1)
    label = write_tiff(tmp_path / "truth.tif", truth)
    rasters = {"rgb": rgb, "dsm": dsm}
    results = evaluate_scene(model, processor, rasters, label, tile_size=64)
    assert list(results["combinations"]) == ["rgb", "dsm", "rgb+dsm"]
    some = evaluate_scene(model, processor, rasters, label, combinations=[["dsm"]], tile_size=64)
    assert some["combinations"] == {"dsm": results["combinations"]["dsm"]}
    for combinations in ([["rgb", "dsm"]], ["rgb"], []):
        with pytest.raises(ValueError, match=r"^`combinations` (holds|is empty)"):
            evaluate_scene(model, processor, {"rgb": rgb, "dsm": None}, label, combinations=combinations)
    with pytest.raises(ValueError, match=r"^The scene has none of the modalities \['rgb', 'dsm'\]"):
        evaluate_scene(model, processor, {"nir": rgb}, label)
    extras = {"extras": ["robustness"], "tile_size": 64}
    made = predict_raster(model, processor, rasters, tmp_path / "map.tif", **extras).files
    alone = score_map(made["labels"], label, 5, robustness=made["robustness"])
    assert results["combinations"]["rgb+dsm"]["accuracy"] == alone["accuracy"]
    reliance = results["robustness_per_class"]
    assert reliance["LABEL_2"] is None and list(reliance["LABEL_0"]) == ["rgb", "dsm"]
    assert sum(reliance["LABEL_1"].values()) == pytest.approx(1, abs=1e-5)
    assert "| rgb+dsm |" in results_to_markdown(results)


def test_command_scores_a_checkpoint_and_a_map(tmp_path, capsys):
    heights = np.random.default_rng(0).uniform(0, 20, (1, 40, 40)).astype(np.float32)
    dsm = write_tiff(tmp_path / "dsm.tif", heights)
    label = write_tiff(tmp_path / "truth.tif", height_classes(heights))
    predict_raster(HeightClasses(), height_processor(), {"dsm": dsm}, tmp_path / "map.tif", tile_size=32)
    scored = ["--map", str(tmp_path / "map.tif"), "--label", label]
    assert main([*scored, "--output", str(tmp_path / "map.json")]) == 0
    perfect = [f"| {name} | 100.00 | 100.00 | 100.00 | 100.00 |" for name in CLASSES]
    assert capsys.readouterr().out.splitlines() == [
        "| class | IoU | F1 | user's accuracy | producer's accuracy |",
        "|---|---:|---:|---:|---:|",
        *perfect,
        "",
        "mIoU 100.00, F1 100.00, accuracy 100.00, kappa 100.00: in %.",
        "Pixels without a label, left out: 0.00%.",
        "",
    ]
    written = json.loads((tmp_path / "map.json").read_text())
    assert (written["accuracy"], written["class_names"], written["robustness_per_class"]) == (1, CLASSES, None)
    model = tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1])
    model.save_pretrained(tmp_path / "model")
    SgmaImageProcessor(["rgb", "dsm"], [3, 1]).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    out = tmp_path / "scores.json"
    right = write_tiff(tmp_path / "right.tif", heights[..., 20:], origin=(500020.0, 4800000.0))
    left = write_tiff(tmp_path / "left.tif", heights[..., :20])
    arguments = ["--model", str(tmp_path / "model"), "--label", label, "--dsm", left, "--dsm", right]
    assert main([*arguments, "--output", str(out)]) == 0
    assert json.loads(out.read_text())["combinations"]["dsm"]["pixels"] == 1600  # of both files
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "model"), "--label", label, "--dsm", dsm, "--output", str(out)]
    assert main(arguments) == 0
    assert "| dsm |" in capsys.readouterr().out
    assert list(json.loads(out.read_text())["combinations"]) == ["dsm"]
    assert main([*arguments, "--resolution", "2"]) == 0
    assert json.loads(out.read_text())["combinations"]["dsm"]["pixels"] == 400  # of the map
    other = [
        "--model",
        str(tmp_path / "model"),
        "--label",
        label,
        "--dsm",
        write_tiff(tmp_path / "cm.tif", heights * 100),
    ]
    capsys.readouterr()
    assert main(other) == 2 and "cm.tif (dsm): it holds mean " in capsys.readouterr().err
    assert main([*other, "--allow_other_scale"]) == 0
    assert main(["--map", str(tmp_path / "none.tif"), "--label", label]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["--map", dsm, "--label", label]) == 2
    assert "does not name its classes" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "gone"), "--label", label, "--dsm", dsm]) == 2
    assert "gone: there is no such folder" in capsys.readouterr().err
    for flags, message in (
        (["--label", label], "give at least one of --rgb, --dsm"),
        (["--output", dsm], "or a scene by `--label` and its rasters"),
        (["--dsm", dsm], "or a scene by `--label` and its rasters"),
        (["--label", label, "--nir", dsm], "there is no flag --nir (the modalities of"),
        (["--label", label, "--dms", dsm], "there is no flag --dms; did you mean --dsm?"),
        (["--label", label, "--dsm", dsm, "--plot", "x.tif"], "`--plot x.tif`: expected a file that ends in .png"),
    ):
        with pytest.raises(SystemExit):
            main(["--model", str(tmp_path / "model"), *flags])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--tile_size", "64"],
        ["--resolution", "2"],
        ["--tta", "flips"],
        ["--allow_other_scale"],
        ["--device", "cpu"],
        ["--mask", "clouds.tif", "--mask_values", "3"],
    ],
)
def test_a_map_is_scored_without_flags_of_a_model(tmp_path, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        main(["--map", "map.tif", "--label", "truth.tif", *flags, "--output", str(tmp_path / "scores.json")])
    said = capsys.readouterr().err
    assert f"{flags[0]} is of a model that is run, and --map is scored as it is" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--output", "--plot"])
def test_command_refuses_outputs_that_would_cost_an_input(tmp_path, capsys, flag):
    dsm = write_tiff(tmp_path / "dsm.tif", np.ones((1, 8, 8), dtype=np.float32))
    label = write_tiff(tmp_path / "truth.tif", np.zeros((1, 8, 8), dtype=np.uint8), photometric="minisblack")
    tiny_model(modalities=["dsm"], modality_channels=[1]).save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--label", f"{label}:1", "--dsm", dsm]
    held = [Path(path).read_bytes() for path in (dsm, label)]
    (tmp_path / "file").write_text("no folder")
    for output, message in ((dsm, "also an input"), (label, "also an input"), (tmp_path, "a folder")):
        assert main([*arguments, flag, str(output)]) == 2
        assert message in capsys.readouterr().err
    assert main([*arguments, flag, str(tmp_path / "file" / "scores")]) == 2
    assert "Cannot write the output" in capsys.readouterr().err
    assert [Path(path).read_bytes() for path in (dsm, label)] == held
    rows = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path), "--split", "test"]
    assert main([*rows, "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_command_draws_the_matrix_of_reliance(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    heights = np.random.default_rng(0).uniform(0, 20, (1, 40, 40)).astype(np.float32)
    label = write_tiff(tmp_path / "truth.tif", height_classes(heights))
    dsm, rgb = write_tiff(tmp_path / "dsm.tif", heights), write_tiff(tmp_path / "rgb.tif", np.repeat(heights, 3, 0))
    tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1]).save_pretrained(tmp_path / "model")
    SgmaImageProcessor(["rgb", "dsm"], [3, 1]).save_pretrained(tmp_path / "model")
    plot = tmp_path / "matrix.png"
    arguments = ["--label", label, "--plot", str(plot)]
    model = ["--model", str(tmp_path / "model"), "--dsm", dsm]
    assert main([*arguments, *model, "--rgb", rgb]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG") and "reliance on" in capsys.readouterr().out
    plot.unlink()
    assert main([*arguments, *model]) == 2 and not plot.exists()
    assert "two modalities or more" in capsys.readouterr().err


def test_reliance_of_a_map_is_that_of_its_own_run(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    heights = np.random.default_rng(0).uniform(0, 20, (1, 32, 32)).astype(np.float32)
    dsm, rgb = write_tiff(tmp_path / "dsm.tif", heights), write_tiff(tmp_path / "rgb.tif", np.repeat(heights, 3, 0))
    label = write_tiff(tmp_path / "truth.tif", height_classes(heights))
    model = tiny_model(
        modalities=["rgb", "dsm"], modality_channels=[3, 1], num_labels=3, id2label=dict(enumerate(CLASSES))
    ).eval()
    processor = SgmaImageProcessor(["rgb", "dsm"], [3, 1])
    how = {"extras": ["robustness"], "tile_size": 32, "allow_other_scale": True}
    predict_raster(model, processor, {"rgb": rgb, "dsm": dsm}, tmp_path / "map.tif", **how)
    arguments = ["--map", str(tmp_path / "map.tif"), "--label", label, "--output", str(tmp_path / "map.json")]
    assert main([*arguments, "--plot", str(tmp_path / "matrix.png")]) == 0
    assert "| reliance on | rgb | dsm |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "map.json").read_text())["robustness_per_class"].values()
    assert all(list(row) == ["rgb", "dsm"] and sum(row.values()) == pytest.approx(1, abs=1e-5) for row in rows)
    # What another run has left there is not of this map.
    predict_raster(model, processor, {"rgb": rgb}, tmp_path / "one.tif", tile_size=32, allow_other_scale=True)
    (tmp_path / "map_robustness.tif").rename(tmp_path / "one_robustness.tif")
    other = ["--map", str(tmp_path / "one.tif"), *arguments[2:], "--plot", str(tmp_path / "no.png")]
    assert main(other) == 2
    assert "`--plot` has nothing to draw" in capsys.readouterr().err
    assert json.loads((tmp_path / "map.json").read_text())["robustness_per_class"] is None


def test_matrix_of_reliance_is_drawn():
    pytest.importorskip("matplotlib")
    from sgma_hf.visualization.charts import plot_robustness_matrix

    figure = plot_robustness_matrix({"roof": {"rgb": 0.2, "dsm": 0.8}, "car": None, "lawn": {"rgb": 0.7, "dsm": 0.3}})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.20", "0.80", "0.70", "0.30"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["roof", "lawn"]
    with pytest.raises(ValueError, match="no class that occurs"):
        plot_robustness_matrix({"car": None})


def test_a_mask_counts_as_two_classes_where_there_are_two(tmp_path):
    found = np.array([[[0, 1, 1, 0], [0, 0, 1, 255]]], dtype=np.uint8)
    truth = np.array([[[0, 255, 0, 255], [0, 0, 255, 255]]], dtype=np.uint8)
    made = write_tiff(tmp_path / "map.tif", found, nodata=255)
    mask = write_tiff(tmp_path / "mask.tif", truth)
    scores = score_map(made, mask, 2)
    assert (scores["pixels"], scores["iou"]) == (7, [3 / 5, 2 / 4])
    assert (scores["uncovered_share"], scores["unlabelled_share"]) == (1 / 8, 0)
    # 255 is no label where it is declared so, where class 1 occurs, of three classes, and where names say so.
    shares = write_tiff(tmp_path / "shares.tif", (truth > 0).astype(np.float32))
    scores = score_map(made, mask, 2, robustness=shares)
    assert scores["robustness_per_class"] == [[0], [1]]
    declared = write_tiff(tmp_path / "declared.tif", truth, nodata=255)
    with_1 = write_tiff(tmp_path / "with_1.tif", np.where(truth[..., ::-1] == truth, truth, 1).astype(np.uint8))
    three = score_map(made, mask, 3)
    named = score_map(made, mask, 2, classes=ClassMap.of_entries(["dry", "wet"]))
    for scores in (score_map(made, declared, 2), three, named):
        assert (scores["pixels"], scores["unlabelled_share"], scores["accuracy"]) == (4, 1 / 2, 3 / 4)
    values = np.where(truth[..., ::-1] == truth, truth, 1)
    assert score_map(made, with_1, 2)["pixels"] == int(((values != 255) & (found != 255)).sum())


def test_label_values_count_as_classes_say(tmp_path):
    found = np.array([[[0, 1, 1, 0], [0, 0, 1, 1]]], dtype=np.uint8)
    made = write_tiff(tmp_path / "map.tif", found, nodata=255)
    values = np.array([[[10, 20, 30, -1], [10, 10, 20, 10]]], dtype=np.int16)
    label = write_tiff(tmp_path / "label.tif", values)
    with pytest.raises(ValueError, match=r"holds 10; expected class ids from 0 to 1.*--classes '\[.*\"value\": 10\}"):
        score_map(made, label, 2)
    entries = [{"name": "a", "value": 10}, {"name": "b", "values": [20, 30]}]
    with pytest.raises(ValueError, match=r"label\.tif holds -1, which is none of the classes \['a', 'b'\]"):
        score_map(made, label, 2, classes=ClassMap.of_entries(entries))
    scores = score_map(made, label, 2, classes=ClassMap.of_entries([*entries, {"value": -1, "ignore": True}]))
    assert (scores["pixels"], scores["accuracy"], scores["iou"]) == (7, 6 / 7, [3 / 4, 3 / 4])
    colours = np.where(np.isin(values, [20, 30]), 200, 7).astype(np.uint8)[0]
    pictured = write_tiff(tmp_path / "pictured.tif", np.stack([colours, colours * 0, colours]))
    by_colour = ClassMap.of_entries([{"name": "b", "color": [200, 0, 200]}, {"name": "a", "color": [7, 0, 7]}])
    scores = score_map(made, pictured, 2, classes=by_colour)
    right = np.where(colours == 200, 0, 1) == found[0]
    assert (scores["pixels"], scores["accuracy"]) == (8, right.mean())


def test_nodata_of_a_label_is_a_class_where_classes_name_it(tmp_path):
    made = write_tiff(tmp_path / "map.tif", np.array([[[0, 1, 1, 0]]], dtype=np.uint8))
    label = write_tiff(tmp_path / "label.tif", np.array([[[0, 1, 0, 7]]], dtype=np.uint8), nodata=0)
    named = ClassMap.of_entries([{"name": "a", "values": [0, 7]}, {"name": "b", "value": 1}])
    taken = ClassMap.of_record([], ["a", "b"])
    assert score_map(made, label, 2, classes=named)["pixels"] == 4
    assert score_map(made, label, 2, classes=named)["accuracy"] == 3 / 4
    with pytest.raises(ValueError, match="holds 7"):
        score_map(made, label, 2, classes=taken)
    label = write_tiff(tmp_path / "label.tif", np.array([[[0, 1, 0, 1]]], dtype=np.uint8), nodata=0)
    scores = [score_map(made, label, 2, classes=classes) for classes in (taken, None)]
    assert scores[0] == scores[1] and (scores[0]["pixels"], scores[0]["unlabelled_share"]) == (2, 1 / 2)


@pytest.mark.parametrize("seed", range(20))
def test_scores_count_a_label_as_its_conversion_does(tmp_path, seed):
    """Any values, nodata and classes: what rows would hold is what is scored, against numpy."""
    from sgma_hf.converters.folders.labels import map_label, survey_labels
    from sgma_hf.rasters.files import read_info

    generator = np.random.default_rng(seed)
    codes = generator.choice([0, 1, 2, 255, -1, 300], 4, replace=False)
    values = generator.choice(codes, (1, 12, 14)).astype(generator.choice(["int16", "int32", "float32"]))
    nodata = generator.choice([None, *codes])
    label = write_tiff(tmp_path / "label.tif", values, nodata=nodata)
    made = write_tiff(tmp_path / "map.tif", generator.integers(0, 2, (1, 12, 14)).astype(np.uint8))
    classes = [{"name": "a", "values": codes[:1].tolist()}, {"name": "b", "values": codes[1:2].tolist()}]
    classes.append({"ignore": True, "values": codes[2:].tolist()})
    survey = survey_labels([read_info(label)], json.dumps(classes))
    ids = map_label(read_info(label), survey.class_map)
    right = np.select([values[0] == codes[0], values[0] == codes[1]], [0, 1], 255)
    np.testing.assert_array_equal(ids, right)
    with rasterio_open(made) as file:
        predicted = file.read(1)
    scores = score_map(made, label, 2, classes=ClassMap.of_record(survey.class_map.entries(), ["a", "b"]))
    assert scores["pixels"] == (right != 255).sum() and scores["unlabelled_share"] == (right == 255).mean()
    assert scores["accuracy"] == pytest.approx((predicted == right)[right != 255].mean())
    unions = [((predicted == k) & (right != 255) | (right == k)).sum() for k in (0, 1)]
    assert scores["iou"] == pytest.approx([((predicted == k) & (right == k)).sum() / unions[k] for k in (0, 1)])


def test_command_counts_label_values_as_training_did(tmp_path, capsys):
    dsm = write_tiff(tmp_path / "dsm.tif", np.random.default_rng(0).uniform(0, 20, (1, 32, 32)).astype(np.float32))
    ids = np.random.default_rng(1).integers(0, 2, (1, 32, 32)).astype(np.uint8)
    values = np.where(ids == 1, 255, 0).astype(np.uint8)
    values[0, :4] = 9
    plain = write_tiff(tmp_path / "ids.tif", np.where(values == 9, 255, ids).astype(np.uint8))
    label = write_tiff(tmp_path / "label.tif", values)
    tiny_model(modalities=["dsm"], modality_channels=[1], num_labels=2).save_pretrained(tmp_path / "model")
    SgmaImageProcessor(["dsm"], [1]).save_pretrained(tmp_path / "model")
    classes = [{"name": "LABEL_0", "values": [0]}, {"name": "LABEL_1", "values": [255]}]
    classes.append({"ignore": True, "values": [9]})
    arguments = ["--model", str(tmp_path / "model"), "--dsm", dsm, "--output", str(tmp_path / "scores.json")]

    def scores(*more):
        assert main([*arguments, *more]) == 0, capsys.readouterr().err
        return json.loads((tmp_path / "scores.json").read_text())["combinations"]["dsm"]

    right = scores("--label", plain)
    assert right["pixels"] == 28 * 32
    assert "Pixels without a label, left out: 12.50%." in capsys.readouterr().out
    assert scores("--label", label, "--classes", json.dumps(classes)) == right
    TrainingRecord(classes=classes).save(tmp_path / "model")
    assert scores("--label", label) == right
    # What a mask hides is missing: no map, so those pixels are not scored.
    clouds = write_tiff(
        tmp_path / "clouds.tif", np.kron([[1, 0], [0, 0]], np.ones((8, 8))).astype(np.uint8)[None], pixel=2.0
    )
    clear = scores("--label", label, "--mask", clouds, "--mask_values", "1")
    assert (clear["pixels"], clear["uncovered_share"]) == (28 * 32 - 16 * 12, pytest.approx(12 * 16 / (28 * 32)))
    # Polygons by the name of a class, by a value, and, of a model that learned from colours, by the name.
    with rasterio_open(dsm) as file:
        west, south, east, north = file.bounds
    roof = [shapely.box(west, south, west + 10, north), shapely.box(west + 10, south, east, north - 4)]
    layer = str(write_vectors(tmp_path / "a.gpkg", roof, crs="EPSG:32631", use=["LABEL_1", "LABEL_0"], value=[255, 0]))
    by_name = scores("--label", layer, "--label_attribute", "use")
    assert by_name["pixels"] == 10 * 32 + 22 * 28
    assert scores("--label", layer, "--label_attribute", "value") == by_name
    colours = [{"name": "LABEL_0", "colors": [[0, 0, 0]]}, {"name": "LABEL_1", "colors": [[9, 9, 9]]}]
    TrainingRecord(classes=colours).save(tmp_path / "model")
    assert scores("--label", layer, "--label_attribute", "use") == by_name
    # Texts say nothing of a raster's numbers, which are ids then.
    texts = [{"name": "LABEL_0", "values": ["lawn"]}, {"name": "LABEL_1", "values": ["shed", "house"]}]
    TrainingRecord(classes=texts).save(tmp_path / "model")
    assert scores("--label", plain) == right
    classes[0]["name"], classes[1]["name"] = "LABEL_1", "LABEL_0"
    assert main([*arguments, "--label", label, "--classes", json.dumps(classes)]) == 2
    assert "'LABEL_1' is 0 there and 1 here" in capsys.readouterr().err


def test_polygons_score_as_the_raster_that_they_stand_for(tmp_path, capsys):
    """The map's grid is that of the raster of labels, so both have equal scores to the last bit."""
    generator = np.random.default_rng(0)
    truth = np.kron(generator.integers(0, 3, (4, 4)), np.ones((4, 4))).astype(np.uint8)
    truth[:4, :4] = 255
    raster = write_tiff(tmp_path / "truth.tif", truth[None], nodata=255)
    made = write_tiff(tmp_path / "map.tif", generator.integers(0, 3, (1, 16, 16), dtype=np.uint8), nodata=255)
    with rasterio_open(made, "r+") as file:
        file.update_tags(1, CLASS_0="low", CLASS_1="middle", CLASS_2="high")
    names, (south, west) = ["low", "middle", "high"], (4800000 - 16, 500000)
    cells = [(row, column) for row in range(4) for column in range(4) if (row, column) != (0, 0)]
    layer = write_vectors(
        tmp_path / "truth.gpkg",
        [shapely.box(west + 4 * c, south + 12 - 4 * r, west + 4 * c + 4, south + 16 - 4 * r) for r, c in cells],
        crs="EPSG:32631",
        use=[names[truth[4 * r, 4 * c]] for r, c in cells],
    )
    expected = score_map(made, raster, 3, class_names=names)
    assert score_map(made, PolygonLabels(layer, "use"), 3, class_names=names) == expected
    flags = ["--label_attribute", "use", "--label_priority", "high", "low", "--output", str(tmp_path / "a.json")]
    assert main(["--map", made, "--label", str(layer), *flags]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["confusion"] == expected["confusion"]
    capsys.readouterr()
    assert main(["--map", made, "--label", str(layer), "--label_attribute", "us"]) == 2
    assert "truth.gpkg:areas has no attribute 'us'; did you mean use?" in capsys.readouterr().err
    assert main(["--map", made, "--label", raster, "--label_attribute", "use"]) == 2
    assert "is no file of polygons" in capsys.readouterr().err
    model, processor = HeightClasses(), height_processor()
    heights = write_tiff(tmp_path / "dsm.tif", np.where(truth == 255, 1, truth)[None].astype(np.float32))
    by_raster = evaluate_scene(model, processor, {"dsm": heights}, raster, tile_size=16)
    assert evaluate_scene(model, processor, {"dsm": heights}, PolygonLabels(layer, "use"), tile_size=16) == by_raster
