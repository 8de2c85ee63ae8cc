"""From folders of rasters to rows: layouts, nodata, resolutions, labels, tiles, spatial splits, bad input."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raster_scenes import write_tiff
from tiny_models import tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.converters.folders.tiling import Tiling, cut
from sgma_hf.converters.raster_folders import ConversionOptions, convert_rasters, main
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.evaluation.combinations import evaluate_modality_combinations
from sgma_hf.rasters.raster import Raster


DATA = os.environ.get("SGMA_TEST_DATA")
real_data = pytest.mark.skipif(not DATA, reason="SGMA_TEST_DATA does not name a folder of real rasters")


def save(path: Path, array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)
    return path


def tiff(path: Path, values, **profile) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiff(path, np.asarray(values), **profile)


def run(source, out, *arguments) -> int:
    return main(["--source", str(source), "--output", str(out), *map(str, arguments)])


def decoded(out, split="train"):
    """Rows by id: (images, label)."""
    names = DatasetMetadata.load(out).modalities
    return {row["id"]: decode_row(row, names) for row in load_rows(out, split)}


def field(value, size=(4, 6)):
    return np.full(size, value, dtype=np.uint8)


@pytest.fixture
def plain(tmp_path):
    """Folders per modality with split folders; field `b` has no red, `c` no label."""
    source = tmp_path / "fields"
    for split, name, number in (("train", "a", 10), ("train", "b", 20), ("train", "c", 30), ("valid", "d", 40)):
        save(source / split / "nir" / f"{name}.png", field(number))
        if name != "b":
            save(source / split / "red" / f"{name}.png", field(number + 1))
        if name != "c":
            save(source / split / "label" / f"{name}.png", np.array([[0, 1, 255, 1, 0, 0]] * 4, dtype=np.uint8))
    return source


def test_folder_per_modality_with_splits_and_absent_files(plain, tmp_path, capsys):
    assert run(plain, tmp_path / "out", "--modalities", "nir", "--modalities", "red", "--label", "label") == 0
    summary = capsys.readouterr().out
    assert "train 3, validation 1 rows" in summary and "red 33%" in summary and "label 33%" in summary
    rows = decoded(tmp_path / "out")
    assert list(rows) == ["a", "b", "c"]
    np.testing.assert_array_equal(rows["a"][0]["nir"], field(10))
    np.testing.assert_array_equal(rows["a"][0]["red"], field(11))
    np.testing.assert_array_equal(rows["a"][1], [[0, 1, 255, 1, 0, 0]] * 4)
    assert rows["b"][0]["red"] is None and rows["c"][1] is None
    assert list(decoded(tmp_path / "out", "validation")) == ["d"]
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.class_names == ["class_0", "class_1"] and metadata.palette == [[187, 187, 187], [213, 94, 0]]
    assert metadata.statistics["class_pixels"] == [24, 16] and metadata.statistics["ignored_pixels"] == 8


def test_scaled_file_beside_plain_ones_is_in_their_unit(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    source = tmp_path / "source"
    tiff(source / "dsm" / "a.tif", np.full((1, 4, 6), 12.5, dtype=np.float32))
    centimetres = tiff(source / "dsm" / "b.tif", np.full((1, 4, 6), 1250, dtype=np.uint16))
    with rasterio.open(centimetres, "r+") as file:
        file.scales = (0.01,)
    for name in "ab":
        tiff(source / "label" / f"{name}.tif", [[[0, 1, 1, 0, 0, 1]] * 4], nodata=255)
    assert run(source, tmp_path / "out", "--modalities", "dsm") == 0
    assert {name: np.unique(images["dsm"]).tolist() for name, (images, _) in decoded(tmp_path / "out").items()} == {
        "a": [12.5],
        "b": [12.5],
    }


def test_modality_that_no_scene_has(plain, tmp_path, capsys):
    arguments = ("--modalities", "nir", "dsm", "red", "--absent", "dsm=2")
    assert run(plain, tmp_path / "out", *arguments) == 0
    assert "nir 0%, dsm 100%, red 33%" in capsys.readouterr().out
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert (metadata.modalities, metadata.modality_channels) == (["nir", "dsm", "red"], [1, 2, 1])
    assert all(images["dsm"] is None for images, _ in decoded(tmp_path / "out").values())
    modalities = {"modalities": metadata.modalities, "modality_channels": metadata.modality_channels}
    model = tiny_model(**modalities, num_labels=2).eval()
    processor = SgmaImageProcessor(**modalities)
    scores = evaluate_modality_combinations(model, processor, load_rows(tmp_path / "out", "train"))["combinations"]
    assert scores["nir"]["rows"] == 2 and scores["nir"]["miou"] is not None
    assert scores["dsm"]["rows"] == 0 and scores["dsm"]["miou"] is None


def test_absence_is_said_on_purpose(plain, tmp_path, capsys):
    cases = [
        (("nir", "dsm"), (), "holds no file for dsm. It holds", "--absent dsm=1"),
        (("nir", "rde"), ("red=1",), "--absent names ['red']; the modalities are", "['nir', 'rde']"),
        (("nir", "red"), ("red=1",), "--absent names ['red'], but ", "holds such files"),
        (("nir", "dsm"), ("dsm",), "--absent dsm: expected NAME=BANDS", "dsm=1"),
        (("nir", "dsm"), ("dsm=0",), "dsm", "0"),
    ]
    for modalities, absent, *messages in cases:
        flags = ("--absent", *absent) if absent else ()
        assert run(plain, tmp_path / "out", "--modalities", *modalities, *flags) == 2
        error = capsys.readouterr().err
        assert all(message in error for message in messages), error
    assert not (tmp_path / "out").exists()


def test_folder_per_scene_without_splits(tmp_path):
    source = tmp_path / "sites"
    for scene in ("north", "south"):
        save(source / scene / "nir.png", field(5))
        save(source / scene / "label.png", field(0))
    save(source / "north" / "photo.png", field(9))
    save(source / "north" / "dsm.png", field(7).astype(np.uint16) * 1000)
    convert_rasters(source, tmp_path / "out", ["dsm", "nir"])
    rows = decoded(tmp_path / "out")
    assert list(rows) == ["north", "south"]
    np.testing.assert_array_equal(rows["north"][0]["dsm"], np.full((4, 6), 7000, dtype=np.uint16))
    assert rows["south"][0]["dsm"] is None


def test_one_folder_with_names_of_modalities_behind_or_in_front(tmp_path):
    source = tmp_path / "sites"
    for scene, number in (("north", 5), ("south_2", 6)):
        save(source / f"{scene}_s1.png", field(number))
        save(source / f"{scene}_my_s1.png", field(number + 10))
        save(source / f"LABEL-{scene}.png", field(0))
    save(source / "photo.png", field(9))
    convert_rasters(source, tmp_path / "out", ["s1", "my_s1"])
    rows = decoded(tmp_path / "out")
    assert {name: [int(image[0, 0]) for image in row[0].values()] for name, row in rows.items()} == {
        "north": [5, 15],
        "south_2": [6, 16],
    }


def test_names_that_say_the_folder_are_paired_by_the_rest(tmp_path):
    source = tmp_path / "plots"
    for name in ("a", "b"):
        save(source / "rgb" / f"{name}_RGB.png", np.zeros((4, 6, 3), dtype=np.uint8))
        save(source / "heights" / f"heights-{name}.png", field(3))
        save(source / "label" / f"{name}_label.png", field(1))
        save(source / "nir" / f"{name}.png", field(2))
    assert run(source, tmp_path / "out", "--modalities", "rgb", "dsm=heights", "nir") == 0
    rows = decoded(tmp_path / "out")
    assert list(rows) == ["a", "b"]
    assert all(image is not None for images, _ in rows.values() for image in images.values())


def test_names_that_are_equal_are_paired_as_they_are(tmp_path):
    source = tmp_path / "plots"
    for folder in ("nir", "red", "label"):
        save(source / folder / "a_nir.png", field(1))
    save(source / "red" / "b_red.png", field(1))  # one of two: no rule of the folder
    assert run(source, tmp_path / "out", "--modalities", "nir", "red") == 0
    assert {name: label is not None for name, (_, label) in decoded(tmp_path / "out").items()} == {
        "a_nir": True,
        "b_red": False,
    }


def test_modality_that_meets_no_label_is_refused(tmp_path, capsys):
    source = tmp_path / "plots"
    for folder, name in (("rgb", "a"), ("dsm", "a_height"), ("label", "a_label")):
        save(source / folder / f"{name}.png", field(1))
    assert run(source, tmp_path / "out", "--modalities", "rgb", "dsm") == 2
    error = capsys.readouterr().err
    assert "no scene has both 'dsm' and a label; dsm/a_height.png and label/a_label.png are taken for" in error
    assert "Give the files of one scene equal stems" in error
    assert not (tmp_path / "out").exists()


def test_nested_names_other_folder_names_and_no_label(tmp_path):
    save(tmp_path / "in" / "NIR band" / "town" / "1.png", field(1))
    save(tmp_path / "in" / "NIR band" / "village" / "1.png", field(2))
    assert run(tmp_path / "in", tmp_path / "out", "--modalities", "nir=NIR band", "--label", "none") == 0
    rows = decoded(tmp_path / "out")
    assert list(rows) == ["town/1", "village/1"] and rows["town/1"][1] is None
    assert DatasetMetadata.load(tmp_path / "out").class_names == []


def test_given_nodata_is_stored_and_a_raster_of_nothing_else_is_missing(plain, tmp_path):
    hole = field(10)
    hole[:, :2] = 0
    save(plain / "train" / "nir" / "a.png", hole)
    save(plain / "train" / "nir" / "b.png", field(0))
    save(plain / "train" / "red" / "b.png", field(3))
    run(plain, tmp_path / "out", "--modalities", "nir", "red", "--nodata", "nir=0")
    rows = decoded(tmp_path / "out")
    np.testing.assert_array_equal(rows["a"][0]["nir"], hole)
    assert rows["b"][0]["nir"] is None and rows["b"][0]["red"] is not None
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.nodata == [[0.0], []]
    assert metadata.statistics["modalities"][0]["minimum"] == [10.0]


def test_declared_nodata_that_agrees_is_kept_and_else_becomes_nan(tmp_path):
    source = tmp_path / "in"
    for name, nodata in (("a", -9999.0), ("b", -32768.0)):
        for modality, value in (("dsm", nodata), ("chm", -1.0)):
            values = np.array([[[value, 2.5, 3.5]]], dtype=np.float32)
            tiff(source / name / f"{modality}.tif", values, nodata=value)
        tiff(source / name / "label.tif", np.zeros((1, 1, 3), dtype=np.uint8))
    convert_rasters(source, tmp_path / "out", ["dsm", "chm"])
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.nodata == [[], [-1.0]] and metadata.modality_dtypes == ["float32", "float32"]
    for images, _ in decoded(tmp_path / "out").values():
        np.testing.assert_array_equal(images["dsm"], np.array([[np.nan, 2.5, 3.5]], dtype=np.float32))
        np.testing.assert_array_equal(images["chm"], np.array([[-1.0, 2.5, 3.5]], dtype=np.float32))


def test_holes_without_a_value_become_nan_in_float32(tmp_path):
    rgba = np.array([[[0, 0, 0, 255], [4, 5, 6, 0]]], dtype=np.uint8)
    save(tmp_path / "in" / "rgb" / "a.png", rgba)
    save(tmp_path / "in" / "label" / "a.png", np.zeros((1, 2), dtype=np.uint8))
    convert_rasters(tmp_path / "in", tmp_path / "out", ["rgb"])
    images, _ = decoded(tmp_path / "out")["a"]
    np.testing.assert_array_equal(images["rgb"], np.array([[[0, 0, 0], [np.nan] * 3]], dtype=np.float32))
    options = ConversionOptions(nodata={}, overwrite=True)
    convert_rasters(tmp_path / "in", tmp_path / "out", ["rgb"], options=options)
    assert run(tmp_path / "in", tmp_path / "out", "--modalities", "rgb", "--nodata", "rgb=255", "--overwrite") == 0
    images, _ = decoded(tmp_path / "out")["a"]
    np.testing.assert_array_equal(images["rgb"], np.array([[[0, 0, 0], [255] * 3]], dtype=np.uint8))


@pytest.fixture
def four_bands(tmp_path):
    """Two scenes of 8-bit red, green, blue and near infrared, which rasterio tags as alpha; it is 0 over water."""
    source = tmp_path / "in"
    for name in ("a", "b"):
        values = np.stack([field(10), field(20), field(30), field(80)])
        values[3, :, :2] = 0
        tiff(source / "rgbn" / f"{name}.tif", values)
        tiff(source / "label" / f"{name}.tif", field(0)[None])
    return source


def test_fourth_band_is_not_taken_for_alpha_unasked(four_bands, tmp_path, capsys):
    assert run(four_bands, tmp_path / "out", "--modalities", "rgbn") == 2
    error = capsys.readouterr().err
    assert "tagged as alpha but holds 80" in error and "`:1,2,3,4`" in error and "`:1,2,3,alpha`" in error
    assert not (tmp_path / "out").exists()
    assert run(four_bands, tmp_path / "out", "--modalities", "rgbn:1,2,3,4") == 0
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert (metadata.modality_channels, metadata.modality_dtypes) == ([4], ["uint8"])
    assert metadata.statistics["modalities"][0]["nodata_share"] == 0
    image = decoded(tmp_path / "out")["a"][0]["rgbn"]
    assert image[0, 0].tolist() == [10, 20, 30, 0] and image[0, 5].tolist() == [10, 20, 30, 80]


def test_modalities_share_files_by_bands(four_bands, tmp_path):
    assert run(four_bands, tmp_path / "out", "--modalities", "nir=rgbn:4", "rgb=rgbn:3,2,1") == 0
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert (metadata.modality_channels, metadata.modality_dtypes) == ([1, 3], ["uint8", "uint8"])
    images, _ = decoded(tmp_path / "out")["b"]
    np.testing.assert_array_equal(images["nir"], [[0, 0, 80, 80, 80, 80]] * 4)
    np.testing.assert_array_equal(images["rgb"], np.broadcast_to([30, 20, 10], (4, 6, 3)))
    assert run(four_bands, tmp_path / "soft", "--modalities", "rgb=rgbn:1,2,3,alpha") == 0
    image = decoded(tmp_path / "soft")["b"][0]["rgb"]
    np.testing.assert_array_equal(np.isnan(image).all(axis=2), [[True] * 2 + [False] * 4] * 4)


def test_bands_that_are_not_there(four_bands, plain, tmp_path, capsys):
    assert run(four_bands, tmp_path / "out", "--modalities", "rgbn:1,5") == 2
    assert "has the bands 1 to 4; bands [1, 5] were asked for" in capsys.readouterr().err
    assert run(plain, tmp_path / "out", "--modalities", "nir:1,alpha") == 2
    assert "no band tagged as alpha" in capsys.readouterr().err


def test_other_extents_and_resolutions_meet_on_the_label(tmp_path):
    scene = tmp_path / "in" / "site"
    tiff(scene / "label.tif", np.zeros((1, 4, 4), dtype=np.uint8), origin=(500004.0, 4800000.0))
    wide = np.arange(4 * 12, dtype=np.uint8).reshape(1, 4, 12)
    tiff(scene / "nir.tif", wide)
    tiff(scene / "hsi.tif", np.arange(20, dtype=np.int16).reshape(5, 2, 2), origin=(500004.0, 4800000.0), pixel=2.0)
    tiff(scene / "dsm.tif", np.full((1, 4, 2), 7, dtype=np.float32), origin=(500004.0, 4800000.0))
    convert_rasters(tmp_path / "in", tmp_path / "out", ["nir", "hsi", "dsm"])
    images, _ = decoded(tmp_path / "out")["site"]
    np.testing.assert_array_equal(images["nir"], wide[0, :, 4:8])
    np.testing.assert_array_equal(images["hsi"], np.arange(20, dtype=np.int16).reshape(5, 2, 2).transpose(1, 2, 0))
    half = np.array([[7, 7, np.nan, np.nan]] * 4, dtype=np.float32)
    np.testing.assert_array_equal(images["dsm"], half)


@pytest.mark.parametrize(("pixels", "recorded"), [((0.5, 0.5, 0.6), 0.5), ((0.5, 0.8), None), ((0.5, None), None)])
def test_the_resolution_of_the_labels_is_recorded_where_scenes_share_it(tmp_path, pixels, recorded):
    for index, pixel in enumerate(pixels):
        place = {"crs": None} if pixel is None else {"pixel": pixel}
        for name in ("nir", "label"):
            tiff(tmp_path / "in" / f"site{index}" / f"{name}.tif", np.ones((1, 4, 4), dtype=np.uint8), **place)
    convert_rasters(tmp_path / "in", tmp_path / "out", ["nir"])
    assert DatasetMetadata.load(tmp_path / "out").resolution == (recorded and pytest.approx(recorded, rel=1e-6))


def test_classes_by_value_merge_ignore_and_rename(plain, tmp_path, capsys):
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps([{"name": "plant", "value": 1, "color": "#0a0b0c"}, {"ignore": True, "value": 0}]))
    assert run(plain, tmp_path / "out", "--modalities", "nir", "--classes", classes) == 0
    np.testing.assert_array_equal(decoded(tmp_path / "out")["a"][1], [[255, 0, 255, 0, 255, 255]] * 4)
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert (metadata.class_names, metadata.palette) == (["plant"], [[10, 11, 12]])
    classes.write_text(json.dumps(["soil"]))
    assert run(plain, tmp_path / "other", "--modalities", "nir", "--classes", classes) == 2
    error = capsys.readouterr().err
    assert "1 (24 pixels)" in error and "--ignore_unmapped" in error and not (tmp_path / "other").exists()
    assert run(plain, tmp_path / "other", "--modalities", "nir", "--classes", classes, "--ignore_unmapped") == 0
    np.testing.assert_array_equal(decoded(tmp_path / "other")["a"][1], [[0, 255, 255, 255, 0, 0]] * 4)


@pytest.mark.parametrize("as_palette", [False, True])
def test_colour_coded_labels(tmp_path, as_palette, capsys):
    road, car, odd = [255, 255, 255], [255, 255, 0], [1, 2, 3]
    if as_palette:
        label = Image.fromarray(np.array([[2, 0, 1]], dtype=np.uint8))
        label.putpalette([*car, *odd, *road])
    else:
        label = Image.fromarray(np.array([[road, car, odd]], dtype=np.uint8))
    save(tmp_path / "in" / "nir" / "a.png", field(1, (1, 3)))
    (tmp_path / "in" / "label").mkdir()
    label.save(tmp_path / "in" / "label" / "a.png")
    classes = tmp_path / "classes.json"
    entries = [{"name": "car", "color": car}, {"name": "road", "colors": [road, [9, 9, 9]]}]
    classes.write_text(json.dumps(entries))
    assert run(tmp_path / "in", tmp_path / "out", "--modalities", "nir", "--classes", classes) == 2
    assert "(1, 2, 3) (1 pixels)" in capsys.readouterr().err
    classes.write_text(json.dumps([*entries, {"ignore": True, "color": odd}]))
    assert run(tmp_path / "in", tmp_path / "out", "--modalities", "nir", "--classes", classes) == 0
    np.testing.assert_array_equal(decoded(tmp_path / "out")["a"][1], [[1, 0, 255]])
    if not as_palette:
        assert run(tmp_path / "in", tmp_path / "other", "--modalities", "nir") == 2
        assert "colour-coded" in capsys.readouterr().err


def test_declared_nodata_of_labels_is_ignored_unless_it_has_a_class(tmp_path):
    label = np.array([[[0, 1, 2]]], dtype=np.uint8)
    tiff(tmp_path / "in" / "a" / "label.tif", label, nodata=0)
    tiff(tmp_path / "in" / "a" / "nir.tif", label + 5)
    convert_rasters(tmp_path / "in", tmp_path / "out", ["nir"])
    np.testing.assert_array_equal(decoded(tmp_path / "out")["a"][1], [[255, 1, 2]])
    (tmp_path / "c.json").write_text('["none", "one", "two"]')
    run(tmp_path / "in", tmp_path / "mapped", "--modalities", "nir", "--classes", tmp_path / "c.json")
    np.testing.assert_array_equal(decoded(tmp_path / "mapped")["a"][1], [[0, 1, 2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Cannot read the classes"),
        ('{"soil": 0}', "list of class names"),
        ('[{"name": "soil"}]', "has no `color`"),
        ('[{"name": "a", "value": 1}, {"name": "b", "value": 1}]', "given twice"),
        ('[{"value": 1}]', "needs a `name`"),
        ('[{"name": "a", "value": 1.5}]', "whole number"),
        ('[{"name": "a", "color": [1, 2]}]', "a colour is"),
        ('[{"name": "a", "value": 1}, {"name": "b", "color": [1, 2, 3]}]', "has no `value`"),
    ],
)
def test_bad_class_files(plain, tmp_path, capsys, content, message):
    (tmp_path / "classes.json").write_text(content)
    assert run(plain, tmp_path / "out", "--modalities", "nir", "--classes", tmp_path / "classes.json") == 2
    assert message in capsys.readouterr().err


def test_labels_that_are_none(tmp_path, capsys):
    save(tmp_path / "in" / "nir" / "a.png", field(1, (1, 2)))
    tiff(tmp_path / "in2" / "a" / "label.tif", np.array([[[0.5, 1.0]]], dtype=np.float32))
    tiff(tmp_path / "in2" / "a" / "nir.tif", np.array([[[1, 1]]], dtype=np.uint8))
    assert run(tmp_path / "in2", tmp_path / "out", "--modalities", "nir") == 2
    assert "fractions such as 0.5" in capsys.readouterr().err
    save(tmp_path / "in" / "label" / "a.png", np.array([[300, 1]], dtype=np.uint16))
    assert run(tmp_path / "in", tmp_path / "out", "--modalities", "nir") == 2
    assert "Map them with --classes" in capsys.readouterr().err


def test_tiles_cover_everything_and_carry_their_place(tmp_path):
    values = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    save(tmp_path / "in" / "nir" / "a.png", values)
    save(tmp_path / "in" / "label" / "a.png", values % 3)
    run(tmp_path / "in", tmp_path / "out", "--modalities", "nir", "--tile_size", 4, "--stride", 3)
    rows = decoded(tmp_path / "out")
    assert list(rows) == ["a_y00000_x00000", "a_y00000_x00003", "a_y00001_x00000", "a_y00001_x00003"]
    np.testing.assert_array_equal(rows["a_y00001_x00003"][0]["nir"], values[1:, 3:])
    np.testing.assert_array_equal(rows["a_y00001_x00000"][1], values[1:, :4] % 3)


def test_pixels_of_a_test_scene_are_labelled_once_whatever_the_stride(tmp_path):
    values = np.arange(1, 71, dtype=np.uint8).reshape(10, 7)
    for split in ("train", "test"):
        save(tmp_path / "in" / split / "nir" / "a.png", values)
        save(tmp_path / "in" / split / "label" / "a.png", values % 3)
    run(tmp_path / "in", tmp_path / "out", "--modalities", "nir", "--tile_size", 4, "--stride", 2)
    assert len(decoded(tmp_path / "out", "train")) == 4 * 3
    rows = decoded(tmp_path / "out", "test")
    times = np.zeros((10, 7), dtype=int)
    for name, (images, label) in rows.items():
        top, left = (int(part[1:]) for part in name.split("_")[1:])
        np.testing.assert_array_equal(images["nir"], values[top : top + 4, left : left + 4])  # the rasters are whole
        kept = label != 255
        np.testing.assert_array_equal(label[kept], (values % 3)[top : top + 4, left : left + 4][kept])
        times[top : top + 4, left : left + 4] += kept
    assert len(rows) == 3 * 2 and (times == 1).all()
    assert (decoded(tmp_path / "out", "train")["a_y00006_x00003"][1] != 255).all()


def test_windows_of_a_tiling_by_hand():
    assert Tiling(None).windows((5, 4), "train") == [(0, 0, 5, 4)]
    assert Tiling(4, 2).windows((6, 4), "train") == [(0, 0, 4, 4), (2, 0, 4, 4)]
    assert Tiling(4, 2).windows((9, 4), "test") == [(0, 0, 4, 4), (4, 0, 4, 4), (5, 0, 4, 4)]
    assert Tiling(4).windows((3, 9), "train") == [(0, 0, 3, 4), (0, 4, 3, 4), (0, 5, 3, 4)]
    for tile, stride in ((0, None), (4, 5), (4, 0), (None, 2)):
        with pytest.raises(ValueError, match="stride"):
            Tiling(tile, stride)


def test_cut_on_cells_is_a_crop_and_off_cells_the_interpolation_of_the_whole():
    rng = np.random.default_rng(0)
    coarse = Raster(rng.normal(size=(4, 6, 2)).astype(np.float32), rng.random((4, 6)) < 0.7)
    coarse.values[~coarse.valid] = np.nan
    on_cells = cut(coarse, (20, 30), (5, 10, 10, 15))
    np.testing.assert_array_equal(on_cells.values, coarse.values[1:3, 2:5])
    window = (3, 7, 9, 11)
    off_cells = cut(coarse, (20, 30), window)
    for row in range(9):  # a plain reference: one pixel at a time
        for column in range(11):
            y, x = (3 + row + 0.5) / 5, (7 + column + 0.5) / 5
            assert off_cells.valid[row, column] == coarse.valid[int(y), int(x)]
            if not off_cells.valid[row, column]:
                continue
            total, weights = np.zeros(2), 0.0
            for r in range(4):
                for c in range(6):
                    down = max(0.0, 1 - abs(np.clip(y - 0.5, 0, 3) - r))
                    weight = down * max(0.0, 1 - abs(np.clip(x - 0.5, 0, 5) - c))
                    if coarse.valid[r, c] and weight:
                        total, weights = total + weight * coarse.values[r, c], weights + weight
            np.testing.assert_allclose(off_cells.values[row, column], total / weights, rtol=1e-5)


def test_val_fraction_and_renamed_splits(plain, tmp_path, capsys):
    arguments = ("--modalities", "nir", "--val_fraction", 0.34)
    assert run(plain, tmp_path / "out", *arguments) == 2
    assert "--split_as valid=test" in capsys.readouterr().err
    (plain / "valid").rename(plain / "Valid")
    assert run(plain, tmp_path / "out", *arguments, "--split_as", "Valid=test") == 0
    ids = [sorted(decoded(tmp_path / "out", split)) for split in ("train", "validation", "test")]
    assert [len(part) for part in ids] == [2, 1, 1] and ids[2] == ["d"] and sorted(ids[0] + ids[1]) == ["a", "b", "c"]


def test_wrong_sources_are_explained(plain, tmp_path, capsys):
    cases = [
        (tmp_path, ["nir", "red"], f"Did you mean {plain}?"),
        (plain / "train" / "nir", ["nir", "red"], f"Did you mean {plain / 'train'}?"),
        (plain, ["nir", "blue"], "holds no file for blue"),
        (plain, ["nir", "label"], "reserved"),
        (plain, ["nir", "nir"], "repeats"),
        (tmp_path / "nowhere", ["nir"], "is not a folder"),
    ]
    for source, modalities, message in cases:
        assert run(source, tmp_path / "out", "--modalities", *modalities) == 2
        assert message in capsys.readouterr().err
    assert run(plain, tmp_path / "out", "--modalities", "nir", "--label", "mask") == 2
    assert "--label none" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields"]


def test_wrong_options_are_explained(plain, tmp_path, capsys):
    cases = [
        (("--nodata", "dsm=0"), "--nodata names ['dsm']"),
        (("--nodata", "nir"), "expected NAME=VALUE"),
        (("--nodata", "nir=x"), "expected NAME=VALUE, numbers"),
        (("--nodata", "nir=300"), "cannot hold that value"),
        (("--stride", "3"), "needs a tile size"),
        (("--group_distance", "60"), "--val_fraction"),
        (("--val_fraction", "2"), "--val_fraction is 2; expected a share between 0 and 1"),
        (("--split_as", "vaild=test"), "--split_as names ['vaild']"),
    ]
    for arguments, message in cases:
        assert run(plain, tmp_path / "out", "--modalities", "nir", *arguments) == 2
        assert message in capsys.readouterr().err
    assert run(plain, plain.parent, "--modalities", "nir", "--overwrite") == 2
    assert "would remove the source" in capsys.readouterr().err and plain.is_dir()


def test_a_damaged_file_is_named_and_nothing_is_left(plain, tmp_path, capsys):
    damaged = save(
        plain / "train" / "red" / "c.png", np.random.default_rng(0).integers(0, 255, (4, 6), dtype=np.uint8)
    )
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert run(plain, tmp_path / "out", "--modalities", "nir", "red") == 2
    assert str(damaged) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields"]


def test_files_that_do_not_fit_together(plain, tmp_path, capsys):
    save(plain / "train" / "red" / "c.png", np.zeros((4, 6, 3), dtype=np.uint8))
    assert run(plain, tmp_path / "out", "--modalities", "nir", "red") == 2
    assert "1 band(s)" in capsys.readouterr().err
    save(plain / "train" / "red" / "c.png", field(1, (4, 12)))
    assert run(plain, tmp_path / "out", "--modalities", "nir", "red") == 2
    assert "proportions" in capsys.readouterr().err
    save(plain / "train" / "red" / "c.png", field(1))
    save(plain / "train" / "red" / "c.jpg", field(1))
    assert run(plain, tmp_path / "out", "--modalities", "nir", "red") == 2
    assert "differ only in their suffix" in capsys.readouterr().err


def test_former_flags_go_on_working(plain, tmp_path, capsys):
    arguments = ["--source", str(plain), "--modalities", "nir", "--split-as", "valid=test", "--val-fraction", "0.5"]
    assert main([*arguments, "--out", str(tmp_path / "former"), "--tile", "3"]) == 0
    assert main([*arguments, "--output", str(tmp_path / "out"), "--tile_size", "3"]) == 0
    for split in ("train", "validation", "test"):
        assert list(decoded(tmp_path / "former", split)) == list(decoded(tmp_path / "out", split))
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "usage: sgma-hf convert-rasters" in shown
    assert "--tile_size" in shown and "--val_fraction" in shown and "--out " not in shown


@real_data
def test_real_weedmap(tmp_path):
    source = Path(DATA) / "weedmap"
    # A dozen of the fields: the rest is the same.
    for split in ("train", "valid"):
        for path in sorted((source / split / "label").iterdir())[:6]:
            for folder in ("nir", "red", "green", "label"):
                target = tmp_path / "in" / split / folder / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source / split / folder / path.name)
    assert run(tmp_path / "in", tmp_path / "out", "--modalities", "nir", "red", "green", "--nodata", "nir=0") == 0
    rows = decoded(tmp_path / "out")
    assert len(rows) == 6 and len(load_rows(tmp_path / "out", "valid")) == 6
    for name, (images, label) in rows.items():
        for folder, array in {**images, "label": label}.items():
            expected = np.asarray(Image.open(source / "train" / folder / f"{name}.png"))
            np.testing.assert_array_equal(array, expected)


@pytest.mark.long
@real_data
def test_real_trees_keep_three_resolutions_and_split_in_space(tmp_path):
    arguments = ("--modalities", "rgb", "hsi", "chm", "--val_fraction", 0.25, "--group_distance", 60)
    assert run(Path(DATA) / "trees", tmp_path / "out", *arguments) == 0
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.modality_channels == [3, 369, 1]
    assert metadata.modality_dtypes == ["uint8", "int16", "float32"]
    training, validation = load_rows(tmp_path / "out", "train"), load_rows(tmp_path / "out", "validation")
    assert len(training) + len(validation) == 58 and 8 <= len(validation) <= 20
    images, label = decode_row(training[0], metadata.modalities)
    assert [images[name].shape for name in metadata.modalities] == [(200, 200, 3), (20, 20, 369), (40, 40)]
    assert label.shape == (200, 200) and set(np.unique(label)) <= {0, 1, 2, 3, 255}
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(Path(DATA) / "trees" / "train" / "hsi" / f"{training[0]['id']}.tif") as source:
        np.testing.assert_array_equal(images["hsi"], np.moveaxis(source.read(), 0, -1))
    corners = {}
    for split, rows in (("train", training), ("validation", validation)):
        for name in rows["id"]:
            with rasterio.open(Path(DATA) / "trees" / "train" / "label" / f"{name}.tif") as source:
                corners.setdefault(split, []).append((source.bounds.left, source.bounds.bottom))
    gaps = np.abs(np.array(corners["train"])[:, None] - np.array(corners["validation"])) - 20  # plots of 20 m
    assert np.hypot(*np.moveaxis(gaps.clip(0), -1, 0)).min() >= 60


@real_data
def test_real_aerial_lacks_modalities(tmp_path):
    assert run(Path(DATA) / "aerial", tmp_path / "out", "--modalities", "rgb", "nir", "dsm", "intensity") == 0
    rows = decoded(tmp_path / "out")
    assert len(rows) == 7
    assert sum(images["rgb"] is None for images, _ in rows.values()) == 5
    assert all(images["dsm"] is not None for images, _ in rows.values())
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.nodata == [[0.0], [0.0], [-9999.0], [-9999.0]]
    assert metadata.statistics["modalities"][2]["minimum"][0] > -100


@real_data
def test_real_sentinel_has_many_bands(tmp_path):
    assert run(Path(DATA) / "sentinel", tmp_path / "out", "--modalities", "s2", "s1", "dem", "--tile_size", 112) == 0
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.modality_channels == [12, 2, 1] and metadata.modality_dtypes == ["int16", "float32", "int16"]
    rows = decoded(tmp_path / "out")
    assert len(rows) == 8
    images, label = rows["433D_629L_3_1_y00112_x00000"]
    assert images["s2"].shape == (112, 112, 12) and images["s2"].dtype == np.int16 and images["dem"].dtype == np.int16
    rasterio = pytest.importorskip("rasterio")
    for name, array in {**images, "label": label}.items():
        with rasterio.open(Path(DATA) / "sentinel" / "433D_629L_3_1" / f"{name}.tif") as source:
            expected = np.moveaxis(source.read(), 0, -1)[112:, :112]
        np.testing.assert_array_equal(array if array.ndim == 3 else array[..., None], expected)
