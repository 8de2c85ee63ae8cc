"""Folders whose labels are polygons: rows as from the label rasters that they stand for, and real footprints."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from datasets import load_dataset
from vector_files import centres, write_vectors
from workspace import write_scenes

from sgma_hf.converters.folders.inspection import inspect_folder
from sgma_hf.converters.raster_folders import main
from sgma_hf.data.class_maps import ClassMap
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.rasters.files import read_raster
from sgma_hf.rasters.grids import Grid
from sgma_hf.rasters.polygons import PolygonLabels
from sgma_hf.rasters.raster import Georeference


NAMES = ["meadow", "wood", "house"]


def convert(folder: Path, output: str, *arguments: str) -> list[dict]:
    """The rows of `scenes`."""
    words = ["--source", str(folder / "scenes"), "--output", str(folder / output), "--modalities", "rgb", "dsm"]
    assert main([*words, *map(str, arguments)]) == 0
    return list(load_dataset(str(folder / output), split="train", cache_dir=str(folder / "cache")))


def outlines(path: Path) -> tuple[list, list[int]]:
    """Polygons of a label raster, and the value of each."""
    with rasterio.open(path) as file:
        found = list(rasterio.features.shapes(file.read(1), transform=file.transform))
    return [shapely.geometry.shape(shape) for shape, _ in found], [int(value) for _, value in found]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_scenes(tmp_path, names="abc", size=32)
    return tmp_path


def labels_of(rows: list[dict]) -> dict[str, np.ndarray]:
    return {row["id"]: np.array(row["label"]) for row in rows}


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_rows_are_those_of_the_label_rasters_that_the_polygons_stand_for(folder, suffix):
    expected = labels_of(convert(folder, "from_rasters"))
    rasters = sorted((folder / "scenes" / "label").iterdir())
    every, values = [], []
    for path in rasters:
        shapes, ids = outlines(path)
        write_vectors(path.with_suffix(suffix), shapes, crs="EPSG:32631", kind="Polygon", id=ids)
        every, values = [*every, *shapes], [*values, *ids]
        path.unlink()
    # A file per scene, of ids.
    assert_equal(labels_of(convert(folder, "each", "--label_attribute", "id")), expected)
    # One file of all scenes, of names.
    one = write_vectors(
        folder / "all.gpkg", every, crs="EPSG:32631", kind="Polygon", use=[NAMES[value] for value in values]
    )
    flags = ["--label", one, "--label_attribute", "use", "--tile_size", "16"]
    rows = convert(folder, "one", *flags, "--classes", json.dumps(NAMES))
    assert len(rows) == 12
    assert_equal(
        labels_of(rows),
        {
            f"{name}_y{top:05d}_x{left:05d}": label[top : top + 16, left : left + 16]
            for name, label in expected.items()
            for top in (0, 16)
            for left in (0, 16)
        },
    )
    # Texts of the class file, which the data set records and a later layer is read by.
    classes = [{"name": "green", "values": ["meadow", "wood"]}, {"name": "roof", "value": "house"}]
    texts = labels_of(convert(folder, "texts", *flags[:4], "--classes", json.dumps(classes)))
    assert_equal(texts, {name: np.array([0, 0, 1])[label] for name, label in expected.items()})
    metadata = DatasetMetadata.load(folder / "texts")
    assert metadata.class_names == ["green", "roof"]
    assert ClassMap.of_record(metadata.classes, metadata.class_names).code_of("wood") == 1


@pytest.mark.parametrize("name", ["{scene}/{kind}", "{scene}_{kind}", "{kind}/{scene}_{kind}"])
def test_a_shapefile_per_scene_is_found_in_every_layout(folder, name):
    expected = labels_of(convert(folder, "from_rasters"))
    (folder / "scenes").rename(folder / "before")
    for path in sorted((folder / "before").glob("*/*.tif")):
        target = folder / "scenes" / name.format(scene=path.stem, kind=path.parent.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "label":
            shapes, ids = outlines(path)
            write_vectors(target.with_name(f"{target.name}.shp"), shapes, crs="EPSG:32631", kind="Polygon", id=ids)
        else:
            path.rename(target.with_name(f"{target.name}.tif"))
    assert_equal(labels_of(convert(folder, "data", "--label_attribute", "id")), expected)


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, label in found.items():
        assert np.array_equal(label, expected[name]), name


def test_scenes_that_the_file_does_not_reach_have_no_label(folder):
    shapes, values = outlines(folder / "scenes" / "label" / "b.tif")
    layer = write_vectors(folder / "b.gpkg", shapes, crs="EPSG:32631", kind="Polygon", id=values)
    rows = convert(folder, "data", "--label", layer, "--label_attribute", "id")
    assert [row["id"] for row in rows if row["label"] is not None] == ["b"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--label_attribute", "ids"], "b.gpkg:areas has no attribute 'ids'; did you mean id?"),
        (["--label_extent", "away.gpkg"], "There is no file away.gpkg"),
        (
            ["--classes", '[{"name": "a", "value": "x"}, {"name": "b", "value": "y"}]'],
            "which attribute says the class",
        ),
        (["--label", "label", "--label_attribute", "id"], "No label is a file of polygons"),
        (["--label", "label", "--classes", '[{"name": "a", "value": "x"}]'], "--classes has texts for values, which"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(folder, capsys, flags, expected):
    shapes, values = outlines(folder / "scenes" / "label" / "b.tif")
    layer = write_vectors(folder / "b.gpkg", shapes, crs="EPSG:32631", kind="Polygon", id=values)
    words = ["--source", str(folder / "scenes"), "--output", str(folder / "data"), "--modalities", "rgb"]
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main([*words, "--label", str(layer), *flags]))
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert stop.value.code == 2 and expected in said
    assert not (folder / "data").exists()


def test_a_layer_that_is_of_no_scene_is_refused(folder, capsys):
    layer = write_vectors(folder / "b.gpkg", [shapely.box(0, 4e6, 10, 4e6 + 10)], crs="EPSG:32631", id=[1])
    words = ["--source", str(folder / "scenes"), "--output", str(folder / "data"), "--modalities", "rgb"]
    assert main([*words, "--label", str(layer), "--label_attribute", "id"]) == 2
    assert "b.gpkg:areas labels no pixel of the rasters: it covers" in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install(folder, capsys, monkeypatch):
    layer = write_vectors(folder / "a.gpkg", [shapely.box(0, 0, 1, 1)], crs="EPSG:32631", id=[1])
    monkeypatch.setitem(sys.modules, "pyogrio.raw", None)
    words = ["--source", str(folder / "scenes"), "--output", str(folder / "data"), "--modalities", "rgb"]
    assert main([*words, "--label", str(layer)]) == 2
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert "needs pyogrio and shapely, which are not installed" in said and "pip install 'sgma-hf[geo]'" in said


def test_an_inspection_names_polygons_that_may_be_labels(folder):
    for path in (folder / "scenes" / "label").iterdir():
        shapes, ids = outlines(path)
        write_vectors(path.with_suffix(".gpkg"), shapes, crs="EPSG:32631", id=ids)
        path.unlink()
    report = inspect_folder(folder / "scenes")
    assert any("a.gpkg may hold labels, as polygons" in remark for remark in report.remarks)
    assert "--label none" in report.command


@pytest.mark.skipif("SGMA_TEST_DATA" not in os.environ, reason="SGMA_TEST_DATA does not name real rasters")
def test_real_footprints_turned_and_burnt_at_another_resolution_keep_their_areas(tmp_path):
    checked, areas, burnt_areas = 0, Counter(), Counter()
    for path in sorted(Path(os.environ["SGMA_TEST_DATA"], "aerial").glob("*/label.tif")):
        with rasterio.open(path) as file:
            crs, affine, values = file.crs, file.transform, file.read(1)
        found = list(rasterio.features.shapes(values, mask=(values != 255).astype("uint8"), transform=affine))
        shapes, ids = (
            [shapely.geometry.shape(shape) for shape, _ in found],
            np.array([int(value) for _, value in found]),
        )
        layer = write_vectors(tmp_path / f"{path.parent.name}.gpkg", shapes, crs=crs.to_string(), id=ids)
        pixel = 0.73 * affine.a
        west, south, east, north = rasterio.transform.array_bounds(*values.shape, affine)
        side = int(1.3 * max(east - west, north - south) / pixel)
        middle = Affine.translation((west + east) / 2, (south + north) / 2)
        place = middle @ Affine.rotation(17) @ Affine.scale(pixel, -pixel) @ Affine.translation(-side / 2, -side / 2)
        grid = Grid((side, side), Georeference(place, crs.to_wkt()))
        PolygonLabels(layer, "id").burn(grid, tmp_path / "burnt.tif", None)
        burnt = read_raster(tmp_path / "burnt.tif")
        labels = np.where(burnt.valid, burnt.values[..., 0], 255)
        for value in range(4):
            areas[value] += (values == value).sum() * abs(affine.determinant)
            burnt_areas[value] += (labels == value).sum() * pixel**2
        x, y = centres(place, (side, side))
        for shape in (shape for shape, value in zip(shapes, ids, strict=True) if value == 3):
            if shape.area > 100 * pixel**2:
                rows, columns = np.nonzero(shapely.contains_xy(shape.buffer(-pixel / 8), x, y))
                assert (labels[rows, columns] == 3).all()
                assert len(rows) == pytest.approx(shape.area / pixel**2, rel=0.25)
                checked += 1
    assert checked == 20
    assert burnt_areas == pytest.approx(areas, rel=0.01)
