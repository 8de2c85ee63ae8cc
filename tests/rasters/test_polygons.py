"""Labels that are polygons: every pixel against a plain point-in-polygon loop."""

import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from vector_files import DRIVERS, centres, last_that_holds, write_vectors

from sgma_hf.data.class_maps import ClassMap
from sgma_hf.rasters import polygons
from sgma_hf.rasters.files import read_raster
from sgma_hf.rasters.grids import Grid
from sgma_hf.rasters.polygons import NothingLabelled, PolygonLabels
from sgma_hf.rasters.raster import Georeference


UTM = rasterio.CRS.from_epsg(32632).to_wkt()
SIZE = (40, 50)
PLACE = Affine(2.0, 0, 500_000, 0, -2.0, 5_400_080)  # 100 m to the east and 80 m to the south
FIELD = shapely.Polygon(
    [(500_003, 5_400_004), (500_071, 5_400_010), (500_060, 5_400_071), (500_011, 5_400_060)],
    holes=[[(500_020, 5_400_020), (500_043, 5_400_024), (500_031, 5_400_047)]],
)
ROOF = shapely.Polygon([(500_050, 5_400_030), (500_092, 5_400_041), (500_081, 5_400_076), (500_047, 5_400_052)])
# No centre of a pixel is on an edge, where either side may count.
FIELD, ROOF = (shapely.transform(shape, lambda places: np.add(places, (0.137, 0.219))) for shape in (FIELD, ROOF))
CLASSES = ClassMap.of_entries([{"name": "field", "value": "agri"}, {"name": "roof", "values": ["house", "barn"]}])


def burn(tmp_path, labels: PolygonLabels, classes=None, *, place=PLACE, size=SIZE, crs=UTM, **options) -> np.ndarray:
    """The burnt raster, -1 where there is no label."""
    labels.burn(Grid(size, Georeference(place, crs)), tmp_path / "burnt.tif", classes, **options)
    raster = read_raster(tmp_path / "burnt.tif")
    assert raster.size == size
    return np.where(raster.valid, raster.values[..., 0], -1)


@pytest.mark.parametrize("suffix", DRIVERS)
def test_a_pixel_is_of_the_polygon_that_holds_its_centre(tmp_path, suffix):
    layer = write_vectors(tmp_path / f"a{suffix}", [FIELD, ROOF], kind="Polygon", landuse=["agri", "barn"])
    found = burn(tmp_path, PolygonLabels(layer, "landuse", priority=["roof"]), CLASSES)  # FlatGeobuf may sort
    expected = last_that_holds([FIELD, ROOF], [0, 2], *centres(PLACE, SIZE), -1)
    assert set(np.unique(expected)) == {-1, 0, 2}
    # GeoJSON holds degrees here, to 7 decimals: edges move by a centimetre.
    assert (found != expected).sum() <= (2 if suffix == ".geojson" else 0)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:3035"])
@pytest.mark.parametrize("angle", [0, 17])
def test_a_layer_is_brought_into_the_crs_of_the_grid_and_its_edges_stay_straight_in_their_own(tmp_path, crs, angle):
    place = PLACE @ Affine.rotation(angle) @ Affine.scale(500)  # pixels of 1 km: straight lines bend by many metres
    x, y = centres(place, SIZE)
    own = np.array(rasterio.warp.transform(UTM, crs, x.ravel().tolist(), y.ravel().tolist()))
    west, south, east, north = *own.min(axis=1), *own.max(axis=1)
    wide, high = east - west, north - south
    field = shapely.Polygon(
        [(west, south), (east, south + high / 7), (east - wide / 3, north), (west + wide / 9, north - high / 5)],
        holes=[shapely.box(west + wide / 3, south + high / 3, east - wide / 2, north - high / 2).exterior.coords],
    )
    layer = write_vectors(tmp_path / "a.gpkg", [field], crs=crs, kind="Polygon", id=[3])
    found = burn(tmp_path, PolygonLabels(layer, "id"), place=place)
    expected = last_that_holds([field], [3], *own.reshape(2, *SIZE), -1)
    assert (expected == 3).sum() > 500
    assert (found != expected).sum() <= 1


def test_numbers_are_ids_and_texts_and_names_of_classes_count_alike(tmp_path):
    shapes = [shapely.box(500_000 + 10 * i, 5_400_000, 500_010 + 10 * i, 5_400_080) for i in range(5)]
    layer = write_vectors(tmp_path / "a.gpkg", shapes, number=[4, 0, 9, 4, 7], text=["roof", "agri", "4", "7", " "])
    assert np.unique(burn(tmp_path, PolygonLabels(layer, "number"))).tolist() == [-1, 0, 4, 7, 9]
    numbers = ClassMap.of_entries([{"name": "roof", "values": [4, 7]}, {"name": "agri", "value": 0}])
    strip = burn(tmp_path, PolygonLabels(layer, "text"), numbers)[0, 2::5]
    assert strip.tolist() == [4, 0, 4, 7, -1, -1, -1, -1, -1, -1]
    ignored = burn(tmp_path, PolygonLabels(layer, "number"), numbers, ignore_unmapped=True)[0, 2::5]
    assert ignored.tolist()[:5] == [4, 0, -1, 4, 7]


def test_what_is_stated_first_lies_above_what_is_stated_later_or_not_at_all(tmp_path):
    middle = shapely.box(500_020, 5_400_020, 500_060, 5_400_060)
    layer = write_vectors(tmp_path / "a.gpkg", [FIELD, ROOF, middle], landuse=["agri", "house", "barn"])
    both = [{"name": "field", "value": "agri"}, {"name": "roof", "value": "house"}, {"name": "barn", "value": "barn"}]
    classes, places = ClassMap.of_entries(both), centres(PLACE, SIZE)
    found = burn(tmp_path, PolygonLabels(layer, "landuse", priority=["field", "house"]), classes)
    assert np.array_equal(found, last_that_holds([middle, ROOF, FIELD], [2, 1, 0], *places, -1))
    assert np.array_equal(
        burn(tmp_path, PolygonLabels(layer, "landuse"), classes),
        last_that_holds([FIELD, ROOF, middle], [0, 1, 2], *places, -1),
    )


def test_touched_pixels_are_those_whose_square_a_shape_meets(tmp_path):
    layer = write_vectors(tmp_path / "a.gpkg", [ROOF], id=[1])
    found = burn(tmp_path, PolygonLabels(layer, "id", all_touched=True))
    x, y = centres(PLACE, SIZE)
    assert np.array_equal(found == 1, shapely.intersects(shapely.box(x - 1, y - 1, x + 1, y + 1), ROOF))


def test_without_an_attribute_shapes_are_one_and_all_else_that_was_digitised_is_zero(tmp_path, caplog):
    layer = write_vectors(tmp_path / "a.gpkg", [ROOF], use=["house"])
    places = centres(PLACE, SIZE)
    expected = last_that_holds([ROOF], [1], *places, 0)
    assert np.array_equal(burn(tmp_path, PolygonLabels(layer)), expected)
    (record,) = caplog.records
    assert "a.gpkg:areas: every feature counts as 1, and all else as 0." in record.message
    sheet = shapely.Polygon([(500_010, 5_400_000), (500_100, 5_400_020), (500_100, 5_400_080), (500_030, 5_400_080)])
    extent = write_vectors(tmp_path / "sheets.fgb", [sheet], kind="Polygon")
    inside = last_that_holds([sheet], [1], *places, 0)
    found = burn(tmp_path, PolygonLabels(layer, extent=str(extent)))
    assert np.array_equal(found, np.where(inside == 1, expected, -1))


def test_the_extent_may_be_the_hull_or_the_bounds_of_the_layer(tmp_path):
    corners = [(500_010.5, 5_400_011), (500_090.1, 5_400_030.3), (500_030.3, 5_400_070.1)]
    layer = write_vectors(tmp_path / "a.gpkg", [shapely.Point(corner).buffer(3) for corner in corners], id=[2, 2, 2])
    options = {"attribute": "id", "background": "5"}
    x, y = centres(PLACE, SIZE)
    hull = burn(tmp_path, PolygonLabels(layer, extent="hull", **options)) >= 0
    expected = shapely.union_all([shapely.Point(corner).buffer(3) for corner in corners]).convex_hull
    assert np.array_equal(hull, last_that_holds([expected], [1], x, y, 0) == 1)
    bounds = burn(tmp_path, PolygonLabels(layer, extent="bounds", **options))
    assert np.array_equal(bounds >= 0, (abs(x - 500_050.3) < 42.8) & (abs(y - 5_400_040.55) < 32.55))
    assert set(np.unique(bounds)) == {-1, 2, 5}


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:4326", "EPSG:3857"])
def test_a_buffer_is_so_many_metres_on_the_ground_whatever_the_grid_calls_a_metre(tmp_path, crs):
    """The grid of EPSG:3857 lies where 1.5 of its metres are one."""
    tree, road = shapely.Point(500_050, 5_400_040), shapely.LineString([(499_900, 5_400_007), (500_200, 5_400_007)])
    layer = write_vectors(tmp_path / "a.gpkg", [tree, road, ROOF], id=[1, 2, 3])
    found = burn(tmp_path, PolygonLabels(layer, "id", buffer=12, priority=["1"]))
    x, y = centres(PLACE, SIZE)
    distance = np.hypot(x - 500_050, y - 5_400_040)
    assert (found[distance < 11.9] == 1).all()
    assert (found[distance > 12.1] != 1).all()
    assert ((found == 2) == (abs(y - 5_400_007) < 12) & (found != 1) & (found != 3)).all()
    west, south, east, north = rasterio.warp.transform_bounds(UTM, crs, 500_000, 5_400_000, 500_100, 5_400_080)
    place = Affine((east - west) / 400, 0, west, 0, (south - north) / 400, north)
    labels, wkt = PolygonLabels(layer, "id", buffer=12, priority=["1"]), rasterio.CRS.from_string(crs).to_wkt()
    found = burn(tmp_path, labels, place=place, size=(400, 400), crs=wkt) == 1
    places = (positions[found].tolist() for positions in centres(place, (400, 400)))
    x, y = np.array(rasterio.warp.transform(crs, UTM, *places))
    assert np.hypot(x - 500_050, y - 5_400_040).max() == pytest.approx(12, abs=0.3)
    assert (np.ptp(x), np.ptp(y)) == (pytest.approx(24, abs=0.5), pytest.approx(24, abs=0.5))


def test_a_bow_tie_is_repaired_and_named_once(tmp_path, caplog):
    tie = shapely.Polygon([(500_010, 5_400_010), (500_070, 5_400_071), (500_070, 5_400_010), (500_010, 5_400_070)])
    layer = write_vectors(tmp_path / "a.gpkg", [ROOF, tie, shapely.Polygon()], id=[1, 2, 3])
    found = [burn(tmp_path, PolygonLabels(layer, "id")) for _ in range(2)][-1]
    (record,) = caplog.records
    assert (
        "a.gpkg:areas: 1 shapes are invalid and were repaired; first that of feature 2: Self-inter" in record.message
    )
    assert np.array_equal(found, last_that_holds([ROOF, tie], [1, 2], *centres(PLACE, SIZE), -1))


def test_large_grids_are_burnt_strip_by_strip_and_the_same(tmp_path, monkeypatch):
    layer = write_vectors(tmp_path / "a.gpkg", [FIELD, ROOF], id=[1, 2])
    whole = burn(tmp_path, PolygonLabels(layer, "id"))
    monkeypatch.setattr(polygons, "_PIXELS_AT_ONCE", 3 * SIZE[1])
    assert np.array_equal(burn(tmp_path, PolygonLabels(layer, "id")), whole)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"attribute": "land_use"},
            r"a.gpkg:areas has no attribute 'land_use'; did you mean landuse\? It has landuse",
        ),
        ({"attribute": "landuse", "priority": ["rof"]}, r"`--label_priority` has 'rof'; expected one of \['field'"),
        ({"attribute": "landuse", "background": "x"}, "`--label_background` has 'x'; expected one of"),
        ({"attribute": "landuse", "extent": "sheet"}, "`--label_extent sheet`: expected `hull`, `bounds`, or a file"),
        ({"attribute": "landuse", "buffer": -1}, "The buffer of labels is -1 metres; expected 0 or more"),
    ],
)
def test_what_the_layer_does_not_have_is_refused(tmp_path, options, expected):
    layer = write_vectors(tmp_path / "a.gpkg", [FIELD, ROOF], landuse=["agri", "barn"])
    with pytest.raises(ValueError, match=expected):
        burn(tmp_path, PolygonLabels(layer, **options), CLASSES)


def test_values_without_a_class_are_counted_in_the_whole_layer_and_the_classes_that_would_fit_are_given(tmp_path):
    far = shapely.box(0, 5_400_000, 9, 5_400_009)
    layer = write_vectors(tmp_path / "a.gpkg", [FIELD, ROOF, ROOF, far], landuse=["agri", "shed", "shed", "lake"])
    said = r"landuse without a class: 'shed' \(2 features\), 'lake' \(1 features\)\. The classes are \['field'"
    with pytest.raises(ValueError, match=said):
        burn(tmp_path, PolygonLabels(layer, "landuse"), CLASSES)
    with pytest.raises(
        ValueError, match=r'Name it: --classes .\[\{"name": "agri", "value": "agri"\}, \{"name": "lake"'
    ):
        burn(tmp_path, PolygonLabels(layer, "landuse"))
    three = ClassMap.of_entries(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"which attribute says the class.* --label_attribute. It has landuse"):
        burn(tmp_path, PolygonLabels(layer), three)


def test_layers_that_cannot_be_placed_or_read_are_refused_in_one_line(tmp_path):
    def refused(labels, **place):
        with pytest.raises(ValueError) as error:
            burn(tmp_path, labels, **place)
        assert "\n" not in str(error.value)
        return str(error.value)

    lost = write_vectors(tmp_path / "lost.gpkg", [ROOF], crs=None, id=[1])
    assert "lost.gpkg:areas has no CRS" in refused(PolygonLabels(lost, "id"))
    assert np.unique(burn(tmp_path, PolygonLabels(lost, "id"), crs=None)).tolist() == [-1, 1]
    empty = write_vectors(tmp_path / "empty.gpkg", [], kind="Polygon", id=[])
    assert "empty.gpkg:areas is empty" in refused(PolygonLabels(empty, "id"))
    away = write_vectors(tmp_path / "away.gpkg", [ROOF], crs="EPSG:32633", id=[1])
    assert "away.gpkg:areas labels no pixel of the rasters: it covers" in refused(PolygonLabels(away, "id"))
    with pytest.raises(NothingLabelled):
        burn(tmp_path, PolygonLabels(away, "id"))
    several = write_vectors(tmp_path / "several.gpkg", [ROOF], id=[1])
    write_vectors(several, [FIELD], layer="roads", id=[2])
    assert "several layers. Choose one of areas, roads, as in" in refused(PolygonLabels(several, "id"))
    assert "holds no layer road; did you mean roads?" in refused(PolygonLabels(f"{several}:road", "id"))
    assert np.unique(burn(tmp_path, PolygonLabels(f"{several}:roads", "id"))).tolist() == [-1, 2]
    (tmp_path / "text.geojson").write_text("no JSON")
    assert "Cannot read" in refused(PolygonLabels(tmp_path / "text.geojson", "id"))
    assert "There is no file" in refused(PolygonLabels(tmp_path / "none.gpkg", "id"))
    with pytest.raises(ValueError, match="the rasters have no place there"):
        PolygonLabels(lost, "id").burn(Grid(SIZE, None), tmp_path / "x.tif", None)
