"""Areas of classes: of a whole map on the ellipsoid, and inside polygons."""

import numpy as np
import pytest
import shapely
from vector_files import centres, last_that_holds, write_vectors

from sgma_hf.rasters.grids import Grid
from sgma_hf.rasters.maps.areas import count_classes, count_zones
from sgma_hf.rasters.raster import Georeference


rasterio = pytest.importorskip("rasterio")
A, F = 6378137.0, 1 / 298.257223563  # WGS 84


def zone_area(south, north, width):
    """Square metres between two latitudes, in degrees, of so many degrees of longitude: Snyder (1987), eq. 3-12."""
    e = np.sqrt(F * (2 - F))

    def q(latitude):
        s = np.sin(np.deg2rad(latitude))
        return (1 - e**2) * (s / (1 - (e * s) ** 2) - np.log((1 - e * s) / (1 + e * s)) / (2 * e))

    return A**2 / 2 * np.deg2rad(width) * (q(north) - q(south))


@pytest.mark.parametrize(("north", "pixel"), [(60.0, 0.001), (10.0, 0.05), (89.0, 0.01), (-20.0, 0.01)])
def test_areas_in_degrees_are_those_of_zones_of_the_ellipsoid(north, pixel):
    height, width = 400, 1100
    labels = np.zeros((height, width), np.uint8)
    labels[:150] = 1
    labels[:, 1000:] = 255
    wkt = rasterio.crs.CRS.from_epsg(4326).to_wkt()
    grid = Grid((height, width), Georeference(rasterio.Affine(pixel, 0, 170, 0, -pixel, north), wkt))
    counts = count_classes([((0, 0), labels[:130]), ((130, 0), labels[130:])], grid)
    middle, south = north - 150 * pixel, north - height * pixel
    expected = [
        zone_area(south, middle, 1000 * pixel),
        zone_area(middle, north, 1000 * pixel),
        zone_area(south, north, 100 * pixel),
    ]
    np.testing.assert_allclose(counts.areas[[0, 1, 255]], expected, rtol=2e-4)
    assert counts.pixels[[0, 1, 255]].tolist() == [250_000, 150_000, 40_000]
    rows = counts.rows(["soil", "tree"])
    assert [row["name"] for row in rows] == ["soil", "tree", None] and rows[2]["share"] is None
    assert rows[0]["area_ha"] == pytest.approx(expected[0] / 10_000, rel=2e-4)
    assert rows[0]["share"] + rows[1]["share"] == pytest.approx(1)


def test_areas_without_a_place_are_not_known():
    counts = count_classes([((0, 0), np.zeros((4, 5), np.uint8))], Grid((4, 5), None))
    assert counts.areas is None and counts.rows(["soil"])[0] | {"name": "soil"} == {
        "class": 0, "name": "soil", "pixels": 20, "area_ha": None, "share": 1.0
    }  # fmt: skip


@pytest.fixture
def label_map(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (90, 120)).astype(np.uint8)
    labels[:10] = 255
    affine = rasterio.Affine(2, 0, 500000, 0, -2, 5000000)
    profile = {"driver": "GTiff", "height": 90, "width": 120, "count": 1, "dtype": "uint8", "nodata": 255}
    with rasterio.open(tmp_path / "map.tif", "w", transform=affine, crs="EPSG:32632", **profile) as file:
        file.write(labels, 1)
    return tmp_path / "map.tif", labels, affine


def test_zones_are_counted_by_the_pixels_whose_centre_they_hold(tmp_path, label_map):
    path, labels, affine = label_map
    first = shapely.Polygon(
        [(500010.3, 4999990.1), (500100.37, 4999960.7), (500090.21, 4999850.83), (499900.6, 4999900.9)]
    )
    second = shapely.box(500050, 4999840, 500150, 4999950)  # overlaps the first
    third = shapely.box(500200, 4999800, 500300, 4999830)  # reaches beyond the map
    far = shapely.box(0, 0, 10, 10)
    zones = write_vectors(tmp_path / "z.gpkg", [first, second, third, far], name=["a", "b", "a", "c"])
    found = dict(count_zones(path, zones, "name"))
    x, y = centres(affine, labels.shape)
    inside = [last_that_holds([shape], [1], x, y, 0) == 1 for shape in (first, second, third)]
    for name, mask in {"a": inside[0] | inside[2], "b": inside[1]}.items():
        assert found[name].pixels.tolist() == np.bincount(labels[mask], minlength=256).tolist()
        np.testing.assert_allclose(found[name].areas, 4 * found[name].pixels, rtol=2e-3)
    assert "c" not in found
    numbered = count_zones(path, zones)
    assert [zone for zone, _ in numbered][:2] == [1, 2]


def test_zones_that_cannot_be_counted_are_refused_in_one_line(tmp_path, label_map):
    path, _, _ = label_map
    far = write_vectors(tmp_path / "far.gpkg", [shapely.box(0, 0, 10, 10)], name=["x"])
    with pytest.raises(ValueError, match=r"far\.gpkg has no polygon that meets the map .*map\.tif"):
        count_zones(path, far)
    with pytest.raises(ValueError, match="has no attribute 'nam'; did you mean name"):
        count_zones(path, far, "nam")
    points = write_vectors(tmp_path / "points.gpkg", [shapely.Point(500010, 4999990)])
    with pytest.raises(ValueError, match="has no polygon"):
        count_zones(path, points)
