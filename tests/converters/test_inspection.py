"""What `sgma-hf inspect` says of a folder, against numpy; the command that it prints converts the folder."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raster_scenes import write_tiff

from sgma_hf.commands import main
from sgma_hf.converters.folders import inspection
from sgma_hf.converters.folders.inspection import inspect_folder
from sgma_hf.data.metadata import DatasetMetadata


pytest.importorskip("rasterio")

DATA = os.environ.get("SGMA_TEST_DATA")
real_data = pytest.mark.skipif(not DATA, reason="SGMA_TEST_DATA does not name a folder of real rasters")


def save(path, values, **profile):
    """A GeoTIFF of (C, H, W) or (H, W) values, or a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        write_tiff(path, values if values.ndim == 3 else values[None], **profile)


def column(report, name):
    return next(column for column in report.modalities if column.name == name)


def run_printed(report, tmp_path, monkeypatch):
    """Run the command that a report ends with, in `tmp_path`; the metadata of what it made."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(report.command)
    assert words[0] == "sgma-hf" and main(words[1:]) == 0
    return DatasetMetadata.load(words[words.index("--output") + 1])


@pytest.fixture
def fields(tmp_path):
    """Four scenes in folders of modalities: one without height, one without a label, heights with gaps."""
    generator = np.random.default_rng(0)
    values = {"rgb": {}, "dsm": {}, "label": {}}
    for index, name in enumerate("abcd"):
        place = {"origin": (500000.0 + 1000 * index, 4800000.0)}
        values["rgb"][name] = generator.integers(1, 255, (3, 20, 30)).astype(np.uint8)
        save(tmp_path / "in" / "rgb" / f"{name}.tif", values["rgb"][name], pixel=0.5, **place)
        if name != "b":
            heights = generator.uniform(10, 90, (10, 15)).astype(np.float32)
            heights[:2] = -9999
            values["dsm"][name] = heights
            save(tmp_path / "in" / "dsm" / f"{name}.tif", heights, nodata=-9999, **place)
        if name != "c":
            values["label"][name] = generator.integers(0, 3, (20, 30)).astype(np.uint8)
            save(tmp_path / "in" / "label" / f"{name}.tif", values["label"][name], pixel=0.5, **place)
    return tmp_path / "in", values


def test_report_says_what_numpy_counts(fields, tmp_path, monkeypatch):
    source, values = fields
    report = inspect_folder(source)
    rgb, dsm = column(report, "rgb"), column(report, "dsm")
    colours = np.stack(list(values["rgb"].values()))
    assert rgb.minimum == colours.min(axis=(0, 2, 3)).tolist() and rgb.maximum == colours.max(axis=(0, 2, 3)).tolist()
    assert (rgb.gap_share, rgb.undeclared, rgb.is_sampled) == (0, {}, False)
    assert (rgb.sizes, rgb.pixels, rgb.bands) == ({"30 x 20": 4}, {"0.5 m": 4}, {"3 x uint8": 4})
    heights = np.stack(list(values["dsm"].values()))
    valid = heights[heights != -9999]
    assert (dsm.files, dsm.gap_share) == (3, 0.2) and dsm.nodata == {"-9999": 3}
    assert (dsm.minimum, dsm.maximum) == ([valid.min()], [valid.max()])
    assert dsm.crs == {"EPSG:32631": 3} and dsm.stored == "float32, nodata -9999"
    counts = np.bincount(np.stack(list(values["label"].values())).ravel()).tolist()
    assert [(row["value"], row["pixels"]) for row in report.label_values] == list(enumerate(counts))
    assert report.pairing == ["without dsm: 1 of 4 scenes (b)", "without a label: 1 of 4 scenes (c)"]
    assert report.problems == [] and report.splits == {"train": 4}
    text = report.text()
    assert "| dsm | 3 | 15 x 10 | 1 m | EPSG:32631 | 1 x float32 | -9999 | 20.00% |" in text
    assert text.endswith(report.command) and "--val_fraction 0.2" in report.command
    metadata = run_printed(report, tmp_path, monkeypatch)
    assert metadata.modalities == ["dsm", "rgb"] and len(metadata.class_names) == 3


def test_ground_sampling_is_in_metres_on_the_ground(tmp_path):
    """At 60 degrees north a degree is 55.8 by 111.4 km, and Mercator's metre is half a metre."""
    grids = {"degrees": ("EPSG:4326", 1e-4, (10.0, 60.0)), "mercator": ("EPSG:3857", 2.0, (1113194.9, 8399737.9))}
    for name, (crs, pixel, origin) in {**grids, "plain": (None, 1.0, None)}.items():
        place = {"transform": None} if origin is None else {"origin": origin, "pixel": pixel}
        save(tmp_path / name / "rgb" / "a.tif", np.ones((3, 8, 8), dtype=np.uint8), crs=crs, **place)
    pixels = {name: column(inspect_folder(tmp_path / name), "rgb").pixels for name in (*grids, "plain")}
    assert pixels == {"degrees": {"5.58 x 11.14 m": 1}, "mercator": {"1.003 x 1.001 m": 1}, "plain": {"-": 1}}


def test_json_is_the_report(fields, capsys):
    source, _ = fields
    assert main(["inspect", str(source), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in report["modalities"]] == ["dsm", "rgb"]
    assert report["modalities"][0]["gap_share"] == 0.2 and report["label_values"][0]["becomes"] == "0 class_0"


def test_files_that_cannot_be_used_are_named_and_passed(fields, tmp_path, capsys):
    source, _ = fields
    (source / "rgb" / "a.tif").write_bytes(b"II*\0 nothing")
    damaged = source / "dsm" / "c.tif"
    save(damaged, np.random.default_rng(0).uniform(0, 1, (64, 64)).astype(np.float32), compress="deflate")
    damaged.write_bytes(damaged.read_bytes()[:9000])
    save(source / "dsm" / "d.png", np.zeros((10, 15), dtype=np.uint8))
    save(source / "rgb" / "b.tif", np.zeros((3, 20, 30), dtype=np.uint8), origin=(900000.0, 4800000.0))
    (source / "label" / "d.tif").write_bytes(b"")
    assert main(["inspect", str(source)]) == 0
    printed = capsys.readouterr().out
    problems = printed.partition("Not usable as it is:\n")[2].splitlines()
    for name, message in (
        ("rgb/a.tif", "Cannot read"),
        ("dsm/c.tif", ""),
        ("dsm/d.png", "differ only in their suffix"),
        ("rgb/b.tif", "does not overlap"),
        ("label/d.tif", "Cannot read"),
    ):
        assert any(name in line and message in line for line in problems), (name, problems)
    assert "| rgb | 3 |" in printed and "| dsm | 3 |" in printed


def test_folders_that_hold_nothing_are_refused_in_one_line(fields, tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert f"Did you mean {fields[0]}?" in capsys.readouterr().err
    save(tmp_path / "scenes" / "a" / "dsm.tif", np.ones((4, 4), dtype=np.float32))
    assert main(["inspect", str(tmp_path / "scenes" / "a")]) == 2
    assert f"files of one scene. Give the folder above it: {tmp_path / 'scenes'}" in capsys.readouterr().err
    (tmp_path / "empty" / "x").mkdir(parents=True)
    for folder, message in (("gone", "is not a folder"), ("empty", "holds no rasters whose folders")):
        assert main(["inspect", str(tmp_path / folder)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_scenes_in_folders_of_their_own_and_usual_names_of_labels(tmp_path, monkeypatch):
    for index, scene in enumerate(("north", "south", "west")):
        place = {"origin": (500000.0 + 4 * index * (index < 2) + 900 * (index == 2), 4800000.0)}
        save(tmp_path / "in" / scene / "NIR.tif", np.full((4, 4), 5, dtype=np.uint8), **place)
        save(tmp_path / "in" / scene / "Mask.tif", np.eye(4, dtype=np.uint8) * 255, **place)
    report = inspect_folder(tmp_path / "in")
    assert "--modalities nir --label mask --val_fraction 0.2 --group_distance 1" in report.command
    assert "255 stands beside 0 alone" in report.text()
    assert run_printed(report, tmp_path, monkeypatch).class_names == ["class_0", "class_255"]


def test_files_of_one_folder_by_their_ends(tmp_path, monkeypatch):
    for name in ("a_1", "b_1"):
        save(tmp_path / "in" / f"{name}_rgb.png", np.full((4, 4, 3), 5, dtype=np.uint8))
        save(tmp_path / "in" / f"{name}_GT.png", np.eye(4, dtype=np.uint8))
    report = inspect_folder(tmp_path / "in")
    assert report.splits == {"train": 2} and "--modalities rgb --label gt" in report.command
    assert run_printed(report, tmp_path, monkeypatch).modalities == ["rgb"]


def test_names_are_told_from_scenes_without_a_label(tmp_path):
    for name in ("x", "y", "z"):
        for band in ("c1", "c2"):
            save(tmp_path / "deep" / band / "town" / f"{name}.png", np.ones((4, 4), dtype=np.uint8))
            save(tmp_path / "scenes" / name / f"{band}.png", np.ones((4, 4), dtype=np.uint8))
            save(tmp_path / "usual" / name / f"{'rgb' if band == 'c1' else band}.png", np.ones((4, 4), dtype=np.uint8))
    for folder, names in (("deep", ["c1", "c2"]), ("scenes", ["c1", "c2"]), ("usual", ["c2", "rgb"])):
        report = inspect_folder(tmp_path / folder)
        assert [column.name for column in report.modalities] == names and "--label none" in report.command


def test_a_modality_that_meets_no_label_is_left_out_of_the_command(fields, tmp_path, monkeypatch):
    source, _ = fields
    save(source / "nir" / "other.tif", np.ones((4, 4), dtype=np.uint8))
    report = inspect_folder(source)
    assert any("no scene has both 'nir' and a label" in problem for problem in report.problems)
    assert "without nir: 4 of 5 scenes (a, b, c, d)" in report.pairing
    assert report.remarks[-1] == "The command below leaves out what cannot be converted: nir."
    assert run_printed(report, tmp_path, monkeypatch).modalities == ["dsm", "rgb"]


def test_undeclared_gaps_are_said_and_given(tmp_path, monkeypatch):
    dark = np.full((10, 10), 7, dtype=np.uint8)
    dark[:3] = 0
    colour = np.full((10, 10, 3), 9, dtype=np.uint8)
    colour[0] = 0
    colour[:, 0, 1] = 0  # dark in one band only is no gap
    heights = np.full((10, 10), 3, dtype=np.int16)
    heights[:, :4] = -9999
    heights[:5, 4:] = 0  # sea level
    for name in "abc":
        save(tmp_path / "in" / "nir" / f"{name}.png", dark)
        save(tmp_path / "in" / "rgb" / f"{name}.png", colour)
        save(tmp_path / "in" / "dsm" / f"{name}.tif", heights, crs=None)
        save(tmp_path / "in" / "label" / f"{name}.png", np.eye(10, dtype=np.uint8))
    report = inspect_folder(tmp_path / "in")
    assert "--nodata dsm=-9999 nir=0 rgb=0" in report.command
    assert column(report, "nir").undeclared == {0: 0.3} and column(report, "rgb").undeclared == {0: 0.1}
    assert column(report, "dsm").undeclared == {-9999: 0.4} and column(report, "dsm").minimum == [0]
    assert any("nir: 30.00% of the pixels are 0 in every band" in remark for remark in report.remarks)
    metadata = run_printed(report, tmp_path, monkeypatch)
    assert [item["nodata_share"] for item in metadata.statistics["modalities"]] == pytest.approx([0.4, 0.3, 0.1])


def test_a_bright_pixel_is_no_gap(tmp_path):
    for name, count in (("bright", 1), ("gap", 1000)):
        values = np.ones((3, 64, 64), dtype=np.uint16)
        values.reshape(3, -1)[0, :count] = 65535
        save(tmp_path / "in" / name / "a.tif", values)
    save(tmp_path / "in" / "label" / "a.tif", np.eye(64, dtype=np.uint8))
    report = inspect_folder(tmp_path / "in")
    assert "--nodata gap=65535 " in report.command + " " and column(report, "bright").undeclared == {}


def test_a_band_that_is_mostly_missing_is_named(tmp_path):
    values = np.ones((2, 10, 10), dtype=np.float32)
    values[1, :7] = -9999
    for name in "ab":
        save(tmp_path / "in" / "s1" / f"{name}.tif", values, nodata=-9999)
        save(tmp_path / "in" / "label" / f"{name}.tif", np.eye(10, dtype=np.uint8))
    report = inspect_folder(tmp_path / "in")
    assert column(report, "s1").gap_share == 0.7
    assert any("2 (70%); `--modalities s1:1` leaves it out" in remark for remark in report.remarks)


def test_bands_tagged_as_alpha_and_reserved_names(tmp_path, monkeypatch):
    for index, name in enumerate("abc"):
        place = {"origin": (500000.0 + 1000 * index, 4800000.0)}
        values = np.full((4, 6, 6), 80 + index, dtype=np.uint8)
        save(tmp_path / "in" / "rgbn" / f"{name}.tif", values, **place)  # GDAL calls the fourth one alpha
        save(tmp_path / "in" / "Images" / f"{name}.tif", values[:3], **place)
        save(tmp_path / "in" / "2019" / f"{name}.tif", values[:1], **place)
        save(tmp_path / "in" / "labels" / f"{name}.tif", np.eye(6, dtype=np.uint8), **place)
    report = inspect_folder(tmp_path / "in")
    assert "--modalities m_2019=2019 rgb=images rgbn:1,2,3,4 --label labels" in report.command
    assert any("tagged as alpha but holds 80" in remark for remark in report.remarks)
    metadata = run_printed(report, tmp_path, monkeypatch)
    assert metadata.modality_channels == [1, 3, 4]


def test_a_damaged_picture_is_no_doubt_about_its_alpha(tmp_path):
    for name in "abc":
        save(tmp_path / "in" / "rgb" / f"{name}.png", np.full((40, 40, 4), 255, dtype=np.uint8))
        save(tmp_path / "in" / "label" / f"{name}.png", np.eye(40, dtype=np.uint8))
    damaged = tmp_path / "in" / "rgb" / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    report = inspect_folder(tmp_path / "in")
    assert [str(damaged) in problem for problem in report.problems] == [True]
    assert column(report, "rgb").files == 2 and "rgb:1" not in report.command


def test_labels_that_need_classes_get_them_in_the_command(tmp_path, monkeypatch):
    for kind, values in (("from_1", [1, 2, 3]), ("signed", [-1, 0, 1]), ("codes", [10, 20, 100]), ("colours", None)):
        source = tmp_path / kind
        label = np.array([values or [0, 1, 2]] * 3, dtype=np.int16)
        if values is None:
            label = np.stack([label * 100, label * 0, label * 0]).astype(np.uint8)
        for index, name in enumerate("abc"):
            place = {"origin": (500000.0 + 1000 * index, 4800000.0)}
            save(source / "nir" / f"{name}.tif", np.ones((3, 3), dtype=np.uint8), **place)
            save(source / "label" / f"{name}.tif", label, **place)
        report = inspect_folder(source)
        assert "--classes" in report.command and len(report.label_values) == 3, kind
        assert len(run_printed(report, tmp_path, monkeypatch).class_names) == 3 - (kind == "signed")


def test_large_scenes_are_cut_and_their_values_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "_LARGE_SIDE", 40)
    monkeypatch.setattr(inspection, "_VALUES_AT_ONCE", 16**2)
    monkeypatch.setattr(inspection, "_PIXELS_PER_FILE", 6 * 16**2)
    values = np.arange(50 * 70, dtype=np.float32).reshape(50, 70)
    values[:, :5] = np.nan
    save(tmp_path / "in" / "a" / "chm.tif", values)
    save(tmp_path / "in" / "a" / "label.tif", (values > 9).astype(np.uint8))
    report = inspect_folder(tmp_path / "in")
    assert report.command.endswith("--tile_size 512")
    chm = column(report, "chm")
    assert chm.is_sampled and (chm.minimum, chm.maximum) == ([5], [values[-1, -1]])  # first and last windows are read
    assert sum(row["pixels"] for row in report.label_values) == 50 * 70
    assert "about " in report.text()
    monkeypatch.undo()
    assert column(inspect_folder(tmp_path / "in"), "chm").gap_share == pytest.approx(5 / 70)


@real_data
@pytest.mark.parametrize("name", ["aerial", "sentinel"])
def test_real_folders_convert_by_the_command_that_is_printed(name, tmp_path, monkeypatch):
    report = inspect_folder(Path(DATA) / name)
    assert report.problems == []
    metadata = run_printed(report, tmp_path, monkeypatch)
    assert metadata.modalities == [column.name for column in report.modalities]
    for column, dtype, nodata in zip(report.modalities, metadata.modality_dtypes, metadata.nodata, strict=True):
        assert column.stored == ", ".join([dtype, *(f"nodata {value:g}" for value in nodata)])


@real_data
@pytest.mark.long
def test_real_trees_are_seen_whole():
    report = inspect_folder(Path(DATA) / "trees")
    assert [column.files for column in report.modalities] == [58] * 3 and report.problems == []
    assert column(report, "hsi").bands == {"369 x int16": 58} and column(report, "rgb").pixels == {"0.1 m": 58}
    assert {row["value"] for row in report.label_values} == {0, 1, 2, 3, 255}


def test_one_modality_and_folders_by_another_path_are_understood(fields, tmp_path, capsys):
    source, _ = fields
    for index, path in enumerate(sorted((source / "rgb").iterdir())):
        path.rename(path.with_name(f"site{index}_{path.name}"))
    assert main(["inspect", str(source / "rgb")]) == 2
    assert f"holds the files of one modality. Give the folder above it: {source}" in capsys.readouterr().err
    assert f"--output data/{source.name} " in inspect_folder(source / "rgb" / "..").command


def test_an_inspection_without_a_command_says_why(tmp_path, capsys):
    save(tmp_path / "in" / "label" / "a.png", np.eye(4, dtype=np.uint8))
    assert main(["inspect", str(tmp_path / "in")]) == 0
    assert "No modality can be converted, so there is no command." in capsys.readouterr().out


def test_a_layer_of_polygons_is_looked_at_and_taken(fields, tmp_path, monkeypatch):
    """Of two scenes out of four: half of each is crop, and the attribute with a name for each feature is no class."""
    source, _ = fields
    for path in (source / "label").iterdir():
        path.unlink()
    (source / "label").rmdir()
    from vector_files import shapely, write_vectors

    boxes = [shapely.box(500000 + x, 4799990, 500007.5 + x, 4800000) for x in (0, 7.5, 1000, 1007.5)]
    names = {"owner": ["a", "b", "c", "d"], "Use": ["crop", "weed", "crop", None]}
    write_vectors(source / "land.gpkg", boxes, crs="EPSG:32631", kind="Polygon", number=[1, 2, 3, 4], **names)
    report = inspect_folder(source)
    assert report.polygons["Use"] == {"crop": 2, "weed": 1, "None": 1} and report.label is None
    assert "| Use | 3 | crop (2), weed (1), none (1) |" in report.text()
    assert "without a label: 2 of 4 scenes (c, d)" in report.pairing
    assert report.problems == []
    assert "--label_attribute Use" in report.command and """--classes '["crop", "weed"]'""" in report.command
    assert run_printed(report, tmp_path, monkeypatch).class_names == ["crop", "weed"]
    assert "--label_attribute number" in inspect_folder(source, label="land.gpkg", attribute="number").command
    with pytest.raises(ValueError, match="has no attribute 'use'; did you mean Use"):
        inspect_folder(source, label="land.gpkg", attribute="use")


def test_a_layer_without_a_class_is_a_mask_and_one_without_a_place_is_a_problem(tmp_path, monkeypatch):
    from vector_files import shapely, write_vectors

    save(tmp_path / "in" / "rgb" / "a.tif", np.full((3, 20, 30), 9, np.uint8))
    box = shapely.box(500000, 4799990, 500010, 4800000)
    write_vectors(tmp_path / "roofs.gpkg", [box], crs="EPSG:32631", kind="Polygon")
    report = inspect_folder(tmp_path / "in", label=str(tmp_path / "roofs.gpkg"))
    assert "No attribute looks like a class" in report.text()
    assert run_printed(report, tmp_path, monkeypatch).class_names == ["class_0", "class_1"]
    save(tmp_path / "plain" / "rgb" / "a.png", np.full((20, 30, 3), 9, np.uint8))
    save(tmp_path / "plain" / "rgb" / "b.png", np.full((20, 30, 3), 9, np.uint8))
    report = inspect_folder(tmp_path / "plain", label=str(tmp_path / "roofs.gpkg"))
    (problem,) = report.problems
    assert "lies on Earth, but the rasters have no place there" in problem
