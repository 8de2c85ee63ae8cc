"""What changed between two maps: counts and areas against numpy, what may explain it, and what is refused."""

import csv
import json

import numpy as np
import pytest
from raster_scenes import CLASSES, PALETTE, write_tiff
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor, predict_raster
from sgma_hf.commands.change import main
from sgma_hf.evaluation.change import change_codes, map_change


rasterio = pytest.importorskip("rasterio")
HEIGHT, WIDTH = 150, 90
NAMES = ["dsm", "rgb"]


def write_map(path, ids, *, names=CLASSES, run="one", confidence=None, robustness=None, modalities=NAMES, **place):
    """A map as `predict` writes it, and what lies beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tiff(path, ids[None], nodata=255, **place)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {index: (*color, 255) for index, color in enumerate(PALETTE)})
        file.update_tags(SGMA_HF_LAYER="labels", SGMA_HF_RUN=run)
        file.update_tags(1, **{f"CLASS_{index}": name for index, name in enumerate(names)})
    for name, values, bands in (("confidence", confidence, ["p", "entropy"]), ("robustness", robustness, modalities)):
        if values is not None:
            beside = path.with_name(f"{path.stem}_{name}.tif")
            write_tiff(beside, values, nodata=np.nan, **place)
            with rasterio.open(beside, "r+") as file:
                file.descriptions = bands
                file.update_tags(SGMA_HF_LAYER=name, SGMA_HF_RUN=run)
    return path


def random_ids(seed, size=(HEIGHT, WIDTH)):
    ids = np.random.default_rng(seed).integers(0, 4, size).astype(np.uint8)
    ids[ids == 3] = 255
    return ids


def matrix(found, column):
    """(4, 4), the last row and column for unknown."""
    names = [*CLASSES, "(unknown)"]
    table = np.zeros((4, 4))
    for row in found["transitions"]:
        table[names.index(row["from"]), names.index(row["to"])] = row[column]
    return table


def expected_counts(old, new):
    old, new = (np.where(ids == 255, 3, ids) for ids in (old, new))
    return np.array([[((old == row) & (new == column)).sum() for column in range(4)] for row in range(4)])


def test_pixels_and_hectares_are_those_of_numpy(tmp_path):
    old, new = random_ids(0), random_ids(1)
    # At 500 km east UTM is 0.9996 of the ground in each direction.
    paths = [write_map(tmp_path / name, ids, pixel=5.0) for name, ids in (("old.tif", old), ("new.tif", new))]
    found = map_change(*paths)
    counts = expected_counts(old, new)
    np.testing.assert_array_equal(matrix(found, "pixels"), counts)
    np.testing.assert_allclose(matrix(found, "area_ha"), counts * 25 / 0.9996**2 / 1e4, rtol=3e-5)
    known = counts[:3, :3]
    np.testing.assert_allclose(
        [found["changed"]["share"], found["unchanged"]["share"]],
        [1 - np.trace(known) / known.sum(), np.trace(known) / known.sum()],
        rtol=1e-6,
    )
    assert found["changed"]["pixels"] == known.sum() - np.trace(known)
    assert (found["known"], found["share_of"]) == ([], "area")
    assert "unexplained" not in found["changed"]


def test_another_grid_is_picked_by_nearest_neighbour_on_the_old_ones(tmp_path):
    old, new = random_ids(2), random_ids(3, (70, 80))
    write_map(tmp_path / "old.tif", old, pixel=1.0)
    # Pixels of 2.5 m that begin 10.3 m further west and 7.1 m further south.
    write_map(tmp_path / "new.tif", new, origin=(500000 - 10.3, 4800000 - 7.1), pixel=2.5)
    found = map_change(tmp_path / "old.tif", tmp_path / "new.tif")
    rows = np.floor((np.arange(HEIGHT) + 0.5 - 7.1) / 2.5).astype(int)
    columns = np.floor((np.arange(WIDTH) + 0.5 + 10.3) / 2.5).astype(int)
    picked = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    is_there = ((rows >= 0) & (rows < 70))[:, None] & ((columns >= 0) & (columns < 80))
    picked[is_there] = new[rows.clip(0, 69)[:, None], columns.clip(0, 79)][is_there]
    np.testing.assert_array_equal(matrix(found, "pixels"), expected_counts(old, picked))


def test_areas_in_degrees_are_those_of_the_ellipsoid(tmp_path):
    old, new = random_ids(4), random_ids(5)
    step = 0.1
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(step, 0, 5, 0, -step, 60)}
    paths = [write_map(tmp_path / name, ids, **place) for name, ids in (("old.tif", old), ("new.tif", new))]
    found = map_change(*paths)
    # Area north of the equator to a latitude on the ellipsoid of WGS 84, per radian of longitude, in closed form.
    axis, e = 6378137.0, 0.0818191908426215
    sine = np.sin(np.deg2rad(60 - step * np.arange(HEIGHT + 1)))
    belt = axis**2 * (1 - e**2) / 2 * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)
    areas = -np.diff(belt) * np.deg2rad(step) / 1e4
    known_old, known_new = (np.where(ids == 255, 3, ids) for ids in (old, new))
    expected = np.zeros((4, 4))
    np.add.at(expected, (known_old, known_new), np.broadcast_to(areas[:, None], old.shape))
    # The middle pixel of 64 rows stands for all of them.
    np.testing.assert_allclose(matrix(found, "area_ha").sum(), expected.sum(), rtol=1e-3)
    np.testing.assert_allclose(matrix(found, "area_ha"), expected, rtol=0.02)


def test_what_may_explain_a_change_is_counted(tmp_path):
    old, new = random_ids(6), random_ids(7)
    generator = np.random.default_rng(8)
    sure = generator.uniform(0.3, 1, (2, 2, HEIGHT, WIDTH)).astype(np.float32)
    shares = generator.uniform(0, 1, (2, 2, HEIGHT, WIDTH)).astype(np.float32)
    shares[1, 0, :40] = 0  # no height in the new map there
    shares[0, 1, 100:] = 0
    shares[0, 1, 90:100] = 0.05  # hardly relied on
    for index, (name, ids) in enumerate((("old.tif", old), ("new.tif", new))):
        for extra in (sure, shares):
            extra[index, :, ids == 255] = np.nan
        write_map(tmp_path / name, ids, run=name, confidence=sure[index], robustness=shares[index])
    found = map_change(tmp_path / "old.tif", tmp_path / "new.tif", output=tmp_path / "change.tif", min_confidence=0.5)
    both = (old != 255) & (new != 255)
    uncertain = (sure[:, 0] < 0.5).any(0)
    lost = (shares[0, 0] >= 0.1) & (shares[1, 0] == 0)
    gained = (shares[1, 1] >= 0.1) & (shares[0, 1] == 0)
    for kind, where in (("changed", both & (old != new)), ("unchanged", both & (old == new))):
        row = found[kind]
        expected = [part[where].mean() for part in (uncertain, lost, gained, ~(uncertain | lost | gained))]
        keys = ("uncertain", "lost_dsm", "gained_rgb", "unexplained")
        np.testing.assert_allclose([row[key] for key in keys], expected, rtol=1e-6)
        assert (row["gained_dsm"], row["lost_rgb"]) == (0, 0)
    with rasterio.open(tmp_path / "change_reason.tif") as file:
        reason = np.where(both & (old != new), uncertain + 2 * (lost | gained), 255)
        np.testing.assert_array_equal(file.read(1), reason)
        assert file.tags(1)["REASON_1"] == "low confidence"


def test_of_predicted_maps_a_gap_of_a_sensor_is_found_where_it_is(tmp_path):
    model = spread_weights(tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1])).eval()
    processor = SgmaImageProcessor(["rgb", "dsm"], [3, 1], nodata=[[], [-9999.0]], reference_level="none")
    generator = np.random.default_rng(0)
    rgb = write_tiff(tmp_path / "rgb.tif", generator.integers(0, 255, (3, 64, 96), dtype=np.uint8))
    heights = generator.uniform(0, 1, (1, 64, 96)).astype(np.float32)
    dsm = [write_tiff(tmp_path / "all.tif", heights)]
    heights[:, :, 32:64] = -9999
    dsm.append(write_tiff(tmp_path / "gap.tif", heights))
    options = {"tile_size": 32, "extras": ["confidence", "robustness"], "allow_other_scale": True}
    for name, height in zip(("old.tif", "new.tif"), dsm, strict=True):
        predict_raster(model, processor, {"rgb": rgb, "dsm": height}, tmp_path / name, **options)
    found = map_change(tmp_path / "old.tif", tmp_path / "new.tif", output=tmp_path / "change.tif")
    assert found["known"] == ["confidence", "robustness"]
    relied_on = rasterio.open(tmp_path / "old_robustness.tif").read(2) >= 0.1
    rows = [row for row in found["transitions"] if row["pixels"]]
    pixels = sum(row["pixels"] * row["lost_dsm"] for row in rows)
    assert pixels == pytest.approx(relied_on[:, 32:64].sum()) and pixels > 1000
    assert not any(row["gained_dsm"] or row["lost_rgb"] for row in rows)


def test_a_modality_that_was_not_given_at_all_is_missing(tmp_path):
    old, new = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8)
    half = np.full((2, 8, 8), 0.5, np.float32)
    write_map(tmp_path / "old.tif", old, robustness=half)
    write_map(tmp_path / "new.tif", new, robustness=2 * half[:1], modalities=["rgb"])
    changed = map_change(tmp_path / "old.tif", tmp_path / "new.tif")["changed"]
    assert {key: changed[key] for key in ("lost_dsm", "gained_dsm", "lost_rgb", "gained_rgb", "unexplained")} == {
        "lost_dsm": 1, "gained_dsm": 0, "lost_rgb": 0, "gained_rgb": 0, "unexplained": 0,
    }  # fmt: skip


def test_extras_of_another_run_do_not_count(tmp_path):
    ids, low = np.zeros((8, 8), np.uint8), np.full((2, 8, 8), 0.1, np.float32)
    write_map(tmp_path / "old.tif", ids, confidence=low)
    write_map(tmp_path / "old.tif", ids, run="two")
    write_map(tmp_path / "new.tif", ids)
    assert map_change(tmp_path / "old.tif", tmp_path / "new.tif")["known"] == []


def test_classes_of_another_order_are_matched_by_name(tmp_path):
    old, new = random_ids(9), random_ids(10)
    write_map(tmp_path / "old.tif", old)
    write_map(tmp_path / "new.tif", new, names=["high", "low", "middle"])
    found = map_change(tmp_path / "old.tif", tmp_path / "new.tif")
    in_order = np.array([2, 0, 1, *[255] * 253])[new]
    np.testing.assert_array_equal(matrix(found, "pixels"), expected_counts(old, in_order))


def test_the_map_says_what_became_of_each_pixel(tmp_path):
    old, new = random_ids(11), random_ids(12)
    for name, ids in (("old.tif", old), ("new.tif", new)):
        write_map(tmp_path / name, ids)
    map_change(tmp_path / "old.tif", tmp_path / "new.tif", output=tmp_path / "out" / "change.tif")
    with rasterio.open(tmp_path / "out" / "change.tif") as file, rasterio.open(tmp_path / "old.tif") as source:
        assert (file.crs, file.transform, file.nodata) == (source.crs, source.transform, 255)
        values, tags, colors = file.read(1), file.tags(1), file.colormap(1)
    texts = {index: tags[f"CHANGE_{index}"] for index in range(9)} | {255: None}
    for (row, column), value in np.ndenumerate(values):
        pair = (old[row, column], new[row, column])
        expected = None if 255 in pair else CLASSES[pair[0]] if pair[0] == pair[1] else " to ".join(
            CLASSES[index] for index in pair
        )  # fmt: skip
        assert texts[value] == expected
    assert colors[4] == (*PALETTE[2], 255) and texts[4] == "low to high"
    assert not (tmp_path / "out" / "change_reason.tif").exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_codes_of_many_classes_tell_what_a_pixel_became():
    codes = change_codes(25)
    assert (codes[:-1, :-1].diagonal() == np.arange(25)).all()
    assert (codes[3, 7], codes[9, 7], codes[25, 7], codes[7, 25]) == (32, 32, 255, 255)
    assert len(np.unique(change_codes(15))) == 15**2 + 1
    with pytest.raises(ValueError, match="up to 127 classes; these are 128"):
        change_codes(128)


def test_the_command_prints_and_writes_the_same_figures(tmp_path, capsys):
    old = np.zeros((10, 10), np.uint8)
    new = old.copy()
    new[:, 5:] = 1
    for name, ids in (("old.tif", old), ("new.tif", new)):
        write_map(tmp_path / name, ids, confidence=np.full((2, 10, 10), 0.5, np.float32))
    files = [str(tmp_path / name) for name in ("change.json", "change.csv")]
    assert main([str(tmp_path / "old.tif"), str(tmp_path / "new.tif"), "--output", files[0], "--table", files[1]]) == 0
    printed = capsys.readouterr().out
    assert "| **low** | 0.005004 (50.00%) | 0.005004 (50.00%) |" in printed
    assert "In 100.0% of it a map's confidence was below 0.6, and in 100.0% of what did not change." in printed
    assert "Not known: robustness." in printed and "high" not in printed
    with open(files[0]) as found, open(files[1]) as table:
        rows, lines = json.load(found)["transitions"], list(csv.DictReader(table))
    assert [line["from"] for line in lines] == [row["from"] for row in rows] and len(rows) == 16
    assert (float(lines[1]["area_ha"]), lines[1]["to"]) == (rows[1]["area_ha"], "middle")


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys):
    old = write_map(tmp_path / "old.tif", random_ids(0))
    far = write_map(tmp_path / "far.tif", random_ids(0), origin=(700000.0, 4800000.0))
    others = write_map(tmp_path / "others.tif", random_ids(0), names=["low", "middle", "roof"])
    heights = write_tiff(tmp_path / "heights.tif", np.full((1, 8, 8), 0.5, np.float32))
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    before = sorted(tmp_path.iterdir())
    output = ["--output", str(tmp_path / "x.json"), "--map", str(tmp_path / "x.tif")]
    for new, message in (
        (far, "does not overlap"),
        (others, "['high', 'roof'] is not in both"),
        (heights, "does not name its classes"),
        (text, "Cannot read"),
        (tmp_path / "none.tif", "does not exist"),
    ):
        assert main([str(old), str(new), *output]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    assert main([str(old), str(old), "--map", str(old)]) == 2
    assert "is also an input" in capsys.readouterr().err
    assert main([str(old), str(old), "--min_confidence", "60"]) == 2
    assert "expected a probability" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_maps_without_a_place_are_counted_in_pixels(tmp_path, capsys):
    ids = np.eye(8, dtype=np.uint8)
    for name in ("old.tif", "new.tif"):
        write_map(tmp_path / name, ids, crs=None)
    assert main([str(tmp_path / "old.tif"), str(tmp_path / "new.tif")]) == 0
    printed = capsys.readouterr().out
    assert "| **low** | 56 (87.50%) | 0 (0.00%) |" in printed and "Changed: 0 pixels (0.00%)" in printed
