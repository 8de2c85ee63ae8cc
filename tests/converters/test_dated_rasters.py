"""From folders of dated rasters to rows with series: layouts, grids, clouds of each date, and what says the date."""

import json
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from raster_scenes import write_tiff

from sgma_hf.commands.inspect_folder import main as inspect
from sgma_hf.converters.raster_folders import main
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.model.dates_sgma import to_days


DAYS = ["20190302", "20190401", "20190511"]
SIZE = 16  # pixels of a label, of 10 m


def tiff(path: Path, values, **profile) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    return Path(write_tiff(path, values if values.ndim == 3 else values[None], **{"pixel": 10.0} | profile))


def label():
    return (np.indices((SIZE, SIZE)).sum(0) % 3).astype(np.uint8)


def band(number):
    return np.arange(SIZE * SIZE, dtype=np.int16).reshape(SIZE, SIZE) + 1000 * number + 1


def convert(source, out, *arguments) -> int:
    return main(["--source", str(source), "--output", str(out), *map(str, arguments)])


def rows_of(out, split="train"):
    names = DatasetMetadata.load(out).modalities
    return {row["id"]: decode_row(row, names) for row in load_rows(out, split)}


@pytest.fixture
def dated(tmp_path):
    """Two scenes, `a` of three dates of s2, `b` of two; a height without a date, which `b` lacks."""
    source = tmp_path / "source"
    for scene, days in (("a", DAYS), ("b", DAYS[:2])):
        for number, day in enumerate(days):
            tiff(source / "s2" / scene / f"{day}.tif", band(number))
        tiff(source / "label" / f"{scene}.tif", label())
    tiff(source / "dsm" / "a.tif", np.full((SIZE, SIZE), 7, np.float32))
    return source


LAYOUTS = [
    ("s2/{scene}/{day}.tif", "{modality}/{scene}.tif"),
    ("s2/{scene}/S2A_MSIL2A_{day}T105021_N0211_R051_T31UFR_20200101T000000.tif", "{modality}/{scene}.tif"),
    ("s2/{scene}_{day}.tif", "{modality}/{scene}.tif"),
    ("s2/s2_{day}_{scene}.tif", "{modality}/{scene}.tif"),
    ("{scene}/s2/{day}.tif", "{scene}/{modality}.tif"),
    ("{scene}/S2/T31UFR_{day}T105021.tif", "{scene}/{modality}.tif"),
    ("{scene}/s2_{day}.tif", "{scene}/{modality}.tif"),
    ("s2/{day}/{scene}.tif", "{modality}/{scene}.tif"),
    ("{scene}/{day}T105021/s2.tif", "{scene}/{modality}.tif"),
    ("{scene}_s2_{day}.tif", "{scene}_{modality}.tif"),
    ("{scene}_{day}_s2.tif", "{scene}_{modality}.tif"),
]


@pytest.mark.parametrize(("series", "static"), LAYOUTS)
def test_every_layout_gives_lists_beside_their_dates(tmp_path, capsys, series, static):
    for scene, days in (("a", DAYS), ("b", DAYS[:2])):
        for number, day in enumerate(days):
            tiff(tmp_path / "source" / series.format(scene=scene, day=day), band(number))
        tiff(tmp_path / "source" / static.format(scene=scene, modality="label"), label())
    tiff(tmp_path / "source" / static.format(scene="a", modality="dsm"), np.full((SIZE, SIZE), 7, np.float32))
    assert convert(tmp_path / "source", tmp_path / "out", "--modalities", "s2", "dsm") == 0
    says = f"by {'folder' if '{day}' in str(Path(series).parent) else 'name'} (5)"
    assert f"s2: 2 to 3 dates a scene, 2019-03-02 to 2019-05-11, {says}" in capsys.readouterr().out
    assert DatasetMetadata.load(tmp_path / "out").series == [True, False]
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == ["a", "b"]
    for scene, count in (("a", 3), ("b", 2)):
        images, found = rows[scene]
        np.testing.assert_array_equal(found, label())
        assert [np.squeeze(array).tolist() for array in images["s2"]] == [band(n).tolist() for n in range(count)]
        days = [datetime.strptime(day, "%Y%m%d") for day in DAYS[:count]]
        assert np.floor(images["s2_dates"]).tolist() == [to_days(day) for day in days]
    assert rows["b"][0]["dsm"] is None and (rows["a"][0]["dsm"] == 7).all()
    # `inspect` says so as well, and its command converts.
    assert inspect([str(tmp_path / "source"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {column["name"]: column["dates"] for column in report["modalities"]} == {
        "s2": f"2 to 3 dates a scene, 2019-03-02 to 2019-05-11, {says}",
        "dsm": "",
    }
    assert report["problems"] == [] and "--modalities dsm s2" in report["command"]
    assert next(column for column in report["modalities"] if column["name"] == "s2")["files"] == 5


def test_files_whose_labels_have_the_date_as_well_are_scenes_of_their_own(tmp_path):
    for number, day in enumerate(DAYS):
        tiff(tmp_path / "source" / "s2" / f"a_{day}.tif", band(number))
        tiff(tmp_path / "source" / "label" / f"a_{day}.tif", label())
    assert convert(tmp_path / "source", tmp_path / "out", "--modalities", "s2") == 0
    assert DatasetMetadata.load(tmp_path / "out").series is None
    assert sorted(rows_of(tmp_path / "out")) == [f"a_{day}" for day in DAYS]


def test_without_labels_series_are_asked_for(tmp_path):
    for number, day in enumerate(DAYS):
        tiff(tmp_path / "source" / "s2" / f"a_{day}.tif", band(number))
        tiff(tmp_path / "source" / "s1" / f"a_{int(day) + 1}.tif", band(number).astype(np.float32))
    names = ("--label", "none", "--modalities", "s2", "s1")
    assert convert(tmp_path / "source", tmp_path / "out", *names) == 0
    assert len(rows_of(tmp_path / "out")) == 6
    assert convert(tmp_path / "source", tmp_path / "series", *names, "--series") == 0
    (images,) = (images for images, _ in rows_of(tmp_path / "series").values())
    assert [len(images[name]) for name in ("s2", "s1")] == [3, 3]
    assert np.subtract(images["s1_dates"], images["s2_dates"]).tolist() == [1.0, 1.0, 1.0]


def test_each_date_is_brought_to_the_grid_of_the_label_and_hidden_by_its_own_clouds(tmp_path, capsys):
    """A plane stays itself under bilinear warping, so what every pixel holds is known by its place."""

    def plane(x, y):
        return (2 * (x - 500000) - 3 * (y - 4800000)).astype(np.float32)

    def grid(origin, pixel, size):
        y, x = np.indices((size, size)) + 0.5
        return origin[0] + pixel * x, origin[1] - pixel * y

    source, origin = tmp_path / "source", (500040.0, 4799960.0)
    tiff(source / "label" / "a.tif", label(), origin=origin)
    grids = [((500000.0, 4800000.0), 20.0, 16), ((500003.0, 4800007.0), 10.0, 32), ((500033.0, 4799967.0), 10.0, 24)]
    clouds = np.zeros((3, SIZE, SIZE), np.uint8)
    clouds[0, :8, :8], clouds[1] = 9, 3  # a quarter tile of the first date, all of the second
    clouds[2, 0, 0] = 4
    for day, place, cloud in zip(DAYS, grids, clouds, strict=True):
        tiff(source / "s2" / "a" / f"{day}.tif", plane(*grid(*place)), origin=place[0], pixel=place[1])
        tiff(source / "scl" / "a" / f"scl_{day}.tif", cloud, origin=origin)
    (source / "scl" / "a" / f"scl_{DAYS[2]}.tif").unlink()
    flags = ("--modalities", "s2", "--tile_size", 8, "--mask", "s2=scl", "--mask_values", "3,9")
    assert convert(source, tmp_path / "out", *flags) == 0
    assert "1 dates have no mask for s2: nothing of it is hidden there." in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    for top in (0, 8):
        for left in (0, 8):
            images, _ = rows[f"a_y{top:05d}_x{left:05d}"]
            days = [to_days(datetime.strptime(day, "%Y%m%d")) for day in DAYS]
            # Where clouds hide all of a date, it is not there.
            there = [0, 2] if top or left else [2]
            assert images["s2_dates"] == [days[index] for index in there]
            corner = (origin[0] + 10 * left, origin[1] - 10 * top)
            for index, array in zip(there, images["s2"], strict=True):
                # Coarser dates are kept in their own cells, of 20 m, which fill the tile.
                expected = plane(*grid(corner, 20.0, 4) if index == 0 else grid(corner, 10.0, 8))
                np.testing.assert_allclose(np.squeeze(array), expected, atol=0.05)


def test_what_is_of_one_day_is_kept_and_told_apart_by_the_time(tmp_path, capsys):
    source = tmp_path / "source"
    tiff(source / "label" / "a.tif", label())
    for number, hour in enumerate((6, 18)):
        tiff(source / "s1" / "a" / f"20190302T{hour:02d}0000.tif", band(number))
        clouds = np.zeros((SIZE, SIZE), np.uint8)
        clouds[number] = 1
        tiff(source / "wet" / "a" / f"20190302T{hour:02d}0000.tif", clouds)
    flags = ("--modalities", "s1", "--mask", "s1=wet", "--mask_values", "1", "--nodata", "s1=-1")
    assert convert(source, tmp_path / "out", *flags) == 0
    images = rows_of(tmp_path / "out")["a"][0]
    assert np.diff(images["s1_dates"]).tolist() == [0.5]
    hidden = [np.unique(np.nonzero(np.squeeze(array) == -1)[0]).tolist() for array in images["s1"]]
    assert hidden == [[0], [1]]
    for number, path in enumerate(sorted((source / "wet" / "a").iterdir())):
        path.rename(path.with_name(f"20190302T0{number}3000.tif"))
    assert convert(source, tmp_path / "again", *flags) == 2
    assert "are of one day, and none has the time 06:00:00" in capsys.readouterr().err


def test_tags_and_tables_say_the_date_where_names_do_not(dated, tmp_path, capsys):
    for number, path in enumerate(sorted((dated / "s2" / "a").iterdir())):
        path.rename(path.with_name(f"{number}.tif"))
    assert convert(dated, tmp_path / "out", "--modalities", "s2") == 2
    error = capsys.readouterr().err
    assert "Nobody says when" in error and "0.tif" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    table = tmp_path / "dates.csv"
    table.write_text("file,date\na/0.tif,2018-01-03\na/1.tif,2018-01-02\na/2.tif,2018-01-01T12:00\n")
    assert convert(dated, tmp_path / "out", "--modalities", "s2", "--date_table", table) == 0
    assert "by table (3), name (2)" in capsys.readouterr().out
    images = rows_of(tmp_path / "out")["a"][0]
    assert images["s2_dates"] == [to_days(day) for day in ("2018-01-01T12:00", "2018-01-02", "2018-01-03")]
    assert [int(np.squeeze(array)[0, 0]) for array in images["s2"]] == [2001, 1001, 1]


def test_what_cannot_be_meant_is_refused_in_a_line(dated, tmp_path, capsys):
    table = tmp_path / "dates.csv"
    table.write_text("file,date\na,2018-01-03\n")
    other = tmp_path / "other.csv"
    other.write_text("file,date\nb/0.tif,2018-01-03\n")
    cases = [
        (("--modalities", "s2", "--date_table", other), "none of its 1 entries, such as 'b/0.tif', is one of the"),
        (("--modalities", "dsm", "--date_table", table), "no modality of .* has several dates"),
        (("--modalities", "s2", "--date_table", tmp_path / "none.csv"), "none.csv"),
    ]
    for arguments, message in cases:
        assert convert(dated, tmp_path / "out", *arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(message, error), error


def test_files_that_are_not_held_in_memory_are_removed(dated, tmp_path):
    assert convert(dated, tmp_path / "data" / "out", "--modalities", "s2", "dsm", "--tile_size", 8) == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["out"]
    rows = rows_of(tmp_path / "data" / "out")
    assert len(rows) == 8
    part = np.squeeze(rows["b_y00008_x00000"][0]["s2"][1])
    np.testing.assert_array_equal(part, band(1)[8:, :8])


def test_two_modalities_share_the_dates_of_one_folder_and_polygons_label_them(tmp_path, capsys):
    from shapely.geometry import box
    from vector_files import write_vectors

    source = tmp_path / "source"
    for number, day in enumerate(DAYS):
        values = np.stack([band(number), band(number) + 1, band(number) + 2])
        tiff(source / "s2" / "a" / f"{day}.tif", values)
    field = box(500000, 4800000 - 80, 500000 + 80, 4800000)  # the upper left quarter
    (source / "label").mkdir()
    write_vectors(source / "label" / "a.gpkg", [field], crs="EPSG:32631", use=["crop"])
    flags = ("--modalities", "visible=s2:1,2", "nir=s2:3", "--label_attribute", "use", "--label_background", "soil")
    assert convert(source, tmp_path / "out", *flags, "--classes", '["soil", "crop"]') == 0, capsys.readouterr().err
    images, found = rows_of(tmp_path / "out")["a"]
    for number in range(3):
        np.testing.assert_array_equal(images["visible"][number][..., 1], band(number) + 1)
        np.testing.assert_array_equal(np.squeeze(images["nir"][number]), band(number) + 2)
    assert images["visible_dates"] == images["nir_dates"]
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[:8, :8] = 1
    np.testing.assert_array_equal(found, expected)
