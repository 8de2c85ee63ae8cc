"""Polygons of a map: their classes and areas, and the way back to labels."""

import os
from pathlib import Path

import numpy as np
import pyogrio.raw
import pytest
import shapely

from sgma_hf.data.class_maps import ClassMap
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.grids import Grid
from sgma_hf.rasters.maps.areas import count_classes
from sgma_hf.rasters.maps.shapes import write_polygons
from sgma_hf.rasters.polygons import PolygonLabels
from sgma_hf.rasters.raster import Georeference


rasterio = pytest.importorskip("rasterio")
NAMES = ["ground", "tree", "roof"]
PLACES = {
    "metres": ("EPSG:32632", rasterio.Affine(2, 0, 500000, 0, -2, 5000000)),
    "degrees": ("EPSG:4326", rasterio.Affine(0.01, 0, 8, 0, -0.02, 47)),
    "turned": ("EPSG:2154", rasterio.Affine.translation(770000, 6279000) @ rasterio.Affine.rotation(17)),
}


def write_map(path, labels, place="metres"):
    crs, affine = PLACES[place]
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "crs": crs, "transform": affine}
    with rasterio.open(path, "w", height=labels.shape[0], width=labels.shape[1], **profile) as file:
        file.write(labels, 1)
    return path


def grid_of(path):
    info = read_info(path, palette_as_indices=True)
    return Grid(info.size, info.georeference)


def read_polygons(path):
    header, _, wkb, columns = pyogrio.raw.read(path)
    return header, shapely.from_wkb(wkb), dict(zip(header["fields"], columns, strict=True))


def patches(shape=(700, 160)):
    """Touching rectangles of different classes, with holes, specks, and a part without a class."""
    labels = np.zeros(shape, np.uint8)
    labels[20:680, 20:60] = 1
    labels[30:90, 60:80] = 2  # touches it
    labels[40:50, 30:40] = 2  # inside it
    labels[100:110, 100:110] = labels[110:120, 110:120] = 2  # touch at a corner
    labels[200, 100] = 1
    labels[600:] = 255
    return labels


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson"])
def test_polygons_are_the_patches_with_class_and_area(tmp_path, place, suffix):
    labels = patches()
    path = write_map(tmp_path / "map.tif", labels, place)
    assert write_polygons(path, tmp_path / f"p{suffix}", NAMES) == 7
    header, shapes, columns = read_polygons(tmp_path / f"p{suffix}")
    assert sorted(columns["class_id"].tolist()) == [0, 1, 1, 2, 2, 2, 2]
    assert [NAMES[index] for index in columns["class_id"]] == columns["class"].tolist()
    assert shapely.is_valid(shapes).all()
    expected = count_classes([((0, 0), labels)], grid_of(path)).areas
    for index in range(3):
        assert columns["area_m2"][columns["class_id"] == index].sum() == pytest.approx(expected[index], rel=2e-4)
    crs = rasterio.crs.CRS.from_user_input(header["crs"])
    assert crs.to_epsg() == (4326 if suffix == ".geojson" else int(PLACES[place][0][5:]))


def test_labels_of_the_polygons_are_those_of_the_map(tmp_path):
    labels = patches()
    path = write_map(tmp_path / "map.tif", labels)
    write_polygons(path, tmp_path / "p.gpkg", NAMES)
    PolygonLabels(tmp_path / "p.gpkg", "class").burn(grid_of(path), tmp_path / "again.tif", ClassMap.of_entries(NAMES))
    again = read_raster(tmp_path / "again.tif")
    assert (again.valid == (labels != 255)).all()
    np.testing.assert_array_equal(again.values[..., 0][again.valid], labels[labels != 255])


def test_small_polygons_are_left_out_and_an_earlier_file_is_replaced(tmp_path):
    path = write_map(tmp_path / "map.tif", patches())
    out = tmp_path / "p.gpkg"
    write_polygons(path, out, NAMES)
    assert write_polygons(path, out, NAMES, min_area=25) == 6  # without the pixel of 4 square metres
    _, _, columns = read_polygons(out)
    assert len(columns["area_m2"]) == 6 and min(columns["area_m2"]) >= 25
    assert sorted(os.listdir(tmp_path)) == ["map.tif", "p.gpkg"]


def test_a_map_of_nothing_gives_an_empty_layer(tmp_path):
    path = write_map(tmp_path / "map.tif", np.full((9, 9), 255, np.uint8))
    assert write_polygons(path, tmp_path / "p.gpkg", NAMES) == 0
    assert pyogrio.raw.read(tmp_path / "p.gpkg")[0]["fields"].tolist() == ["class_id", "class", "area_m2"]


def test_polygons_that_cannot_be_written_are_refused(tmp_path):
    path = write_map(tmp_path / "map.tif", patches())
    with pytest.raises(ValueError, match=r"expected a name that ends in \.gpkg, \.geojson, \.fgb"):
        write_polygons(path, tmp_path / "p.kml", NAMES)
    with pytest.raises(ValueError, match="`min_area` is -1"):
        write_polygons(path, tmp_path / "p.gpkg", NAMES, min_area=-1)


@pytest.mark.skipif("SGMA_TEST_DATA" not in os.environ, reason="SGMA_TEST_DATA does not name a folder of real rasters")
def test_real_labels_to_polygons_and_back_on_a_turned_and_finer_grid(tmp_path):
    checked = 0
    for path in sorted((Path(os.environ["SGMA_TEST_DATA"]) / "aerial").glob("*/label.tif")):
        grid = grid_of(path)
        before = read_raster(path, palette_as_indices=True)
        names = ["ground", "low", "high", "building"]
        known = np.where(before.valid, before.values[..., 0], 255)
        write_polygons(path, tmp_path / f"{checked}.gpkg", names)
        height, width = grid.size
        turned = grid.georeference.affine @ rasterio.Affine.rotation(17, (width / 2, height / 2))
        turned = turned @ rasterio.Affine.translation(-width / 2, -height / 2) @ rasterio.Affine.scale(0.5)
        wide = Grid((4 * height, 4 * width), Georeference(turned, grid.georeference.crs))
        burnt = tmp_path / f"{checked}.tif"
        PolygonLabels(tmp_path / f"{checked}.gpkg", "class").burn(wide, burnt, ClassMap.of_entries(names))
        again = read_raster(burnt)
        after = np.where(again.valid, again.values[..., 0], 255).astype(np.uint8)
        expected = count_classes([((0, 0), known.astype(np.uint8))], grid).areas[:4]
        found = count_classes([((0, 0), after)], wide).areas[:4]
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-4 * expected.sum())
        checked += 1
    assert checked == 7
