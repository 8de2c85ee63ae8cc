"""Metres per pixel on the ground in any CRS, against distances between places on the ellipsoid."""

import numpy as np
import pytest

from sgma_hf.rasters.grids import Grid, ground_sampling, pixel_area, shared_sampling
from sgma_hf.rasters.raster import Georeference


rasterio = pytest.importorskip("rasterio")
warp = pytest.importorskip("rasterio.warp")
LOCAL = 'LOCAL_CS["site",UNIT["{}",{}]]'


def grid_at(crs, longitude, latitude, pixel, *, turn=0.0, size=(40, 60)):
    """A grid whose middle lies at a place in degrees, with pixels (width, height) in units of the CRS."""
    (x,), (y,) = warp.transform("EPSG:4326", crs, [longitude], [latitude])
    affine = rasterio.Affine
    lie = affine.rotation(turn) @ affine.scale(pixel[0], -pixel[1]) @ affine.translation(-size[1] / 2, -size[0] / 2)
    return Grid(size, Georeference(affine.translation(x, y) @ lie, rasterio.crs.CRS.from_user_input(crs).to_wkt()))


def geocentric(longitude, latitude):
    """Metres from the centre of the Earth, (3,), on the ellipsoid of WGS 84."""
    longitude, latitude = np.deg2rad(longitude), np.deg2rad(latitude)
    square = 0.00669437999014
    radius = 6378137 / np.sqrt(1 - square * np.sin(latitude) ** 2)
    across = radius * np.cos(latitude)
    return np.array([across * np.cos(longitude), across * np.sin(longitude), radius * (1 - square) * np.sin(latitude)])


def area(grid):
    """Square metres of a pixel in the middle, from the parallelogram that a hundred by a hundred of them span."""
    row, column = (side / 2 for side in grid.size)
    x, y = grid.georeference.affine @ (np.array([column, column, column + 100]), np.array([row, row + 100, row]))
    places = warp.transform(grid.georeference.crs, "EPSG:4326", x.tolist(), y.tolist())
    middle, *others = (geocentric(*place) for place in zip(*places, strict=True))
    return np.linalg.norm(np.cross(others[0] - middle, others[1] - middle)) / 10_000


def distances(grid):
    """From the pixel in the middle to the 100th below and the 100th to the right of it, in metres per pixel."""
    row, column = (side / 2 for side in grid.size)
    x, y = grid.georeference.affine @ (np.array([column, column, column + 100]), np.array([row, row + 100, row]))
    places = warp.transform(grid.georeference.crs, "EPSG:4326", x.tolist(), y.tolist())
    middle, *others = (geocentric(*place) for place in zip(*places, strict=True))
    return [np.linalg.norm(other - middle) / 100 for other in others]


@pytest.mark.parametrize(
    ("crs", "place", "pixel"),
    [
        ("EPSG:32633", (15.3, 60.0), (0.2, 0.2)),
        ("EPSG:2154", (3.9, 43.6), (0.5, 0.25)),
        ("EPSG:2263", (-74.0, 40.7), (1.0, 1.0)),  # feet
        ("EPSG:3857", (10.0, 50.0), (0.3, 0.3)),
        ("EPSG:3857", (10.0, 0.5), (0.3, 0.3)),
        ("EPSG:3857", (179.9999999, -70.0), (30.0, 30.0)),
        ("EPSG:4326", (10.0, 60.0), (1e-4, 1e-4)),
        ("EPSG:4326", (-179.99999, -33.0), (2e-5, 1e-5)),
        ("EPSG:4258", (10.0, 0.0), (1e-4, 3e-4)),
    ],
)
@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_metres_are_those_on_the_ellipsoid(crs, place, pixel, turn):
    grid = grid_at(crs, *place, pixel, turn=turn)
    found = ground_sampling(grid)
    np.testing.assert_allclose(found, distances(grid), rtol=0.004 if "3857" not in crs else 2e-2)
    if crs == "EPSG:32633":
        np.testing.assert_allclose(found, (0.2, 0.2), rtol=1e-6)  # the unit of the CRS itself


def test_local_coordinates_have_their_unit_and_none_has_none():
    affine = rasterio.Affine(2.0, 0, 0, 0, -3.0, 0)
    for unit, metres in (("metre", 1.0), ("foot", 0.3048)):
        found = ground_sampling(Grid((4, 4), Georeference(affine, LOCAL.format(unit, metres))))
        np.testing.assert_allclose(found, (3 * metres, 2 * metres))
    assert ground_sampling(Grid((4, 4), Georeference(affine, None))) is None
    assert ground_sampling(Grid((4, 4), None)) is None


def test_rasters_share_what_is_no_more_than_half_as_much_again():
    def at(pixel):
        return grid_at("EPSG:32633", 15, 50, (pixel, pixel))

    assert shared_sampling([at(0.2), at(0.25), at(0.28)]) == pytest.approx(0.25)
    assert shared_sampling([at(0.2), at(0.25), at(0.31)]) is None
    assert shared_sampling([at(0.2), Grid((4, 4), None)]) is None
    assert shared_sampling([]) is None


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3857"])
def test_a_grid_at_another_resolution_has_the_same_corner_and_covers_the_same(crs):
    pixel = {"EPSG:4326": (2e-6, 1e-6)}.get(crs, (0.2, 0.1))
    grid = grid_at(crs, 15, 50, pixel, size=(405, 610))
    other = grid.resampled(0.5)
    np.testing.assert_allclose(ground_sampling(other), (0.5, 0.5), rtol=1e-5)
    assert tuple(other.georeference.affine)[2::3][:2] == tuple(grid.georeference.affine)[2::3][:2]
    for axis, side in enumerate(ground_sampling(grid)):
        cells = grid.size[axis] * side / 0.5
        assert -0.011 < other.size[axis] - cells < 1
    assert grid.resampled(1e6).size == (1, 1)


@pytest.mark.parametrize(
    ("crs", "longitude", "latitude", "pixel", "turn"),
    [
        ("EPSG:32631", 3.0, 45.0, (0.2, 0.2), 0),
        ("EPSG:32631", 8.9, 45.0, (10, 10), 0),  # 6 degrees from the middle of the zone
        ("EPSG:3857", 10.0, 60.0, (2, 2), 0),  # where its metres are half a metre
        ("EPSG:4326", -100.0, 38.0, (1e-5, 2e-5), 0),
        ("EPSG:2154", 3.9, 43.6, (0.5, 0.25), 31),
        ("EPSG:2263", -74.0, 40.7, (3, 3), 0),  # feet
    ],
)
def test_area_of_a_pixel_is_that_on_the_ellipsoid(crs, longitude, latitude, pixel, turn):
    grid = grid_at(crs, longitude, latitude, pixel, turn=turn)
    assert pixel_area(grid) == pytest.approx(area(grid), rel=1e-4)


def test_area_of_a_pixel_without_a_place_on_earth():
    place = Georeference(rasterio.Affine(0.5, 0, 0, 0, -0.5, 0), LOCAL.format("metre", 1))
    assert pixel_area(Grid((4, 4), place)) == 0.25
    assert pixel_area(Grid((4, 4), None)) is None
