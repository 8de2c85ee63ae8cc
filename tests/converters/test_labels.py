"""What becomes of the values of label files: nodata by file, masks, gaps, values of no label, classes, the table."""

import json
import re

import numpy as np
import pytest
from raster_scenes import write_tiff

from sgma_hf.converters.folders.labels import map_label, survey_labels
from sgma_hf.converters.raster_folders import main
from sgma_hf.data.class_maps import ClassMap
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.rasters.files import read_info


pytest.importorskip("rasterio")


def write_labels(folder, *labels):
    """`label/0.tif`, ... of (values (H, W), nodata or None), with a modality beside each."""
    for index, (values, nodata) in enumerate(labels):
        for name, array in (("label", np.asarray(values)), ("nir", np.ones(np.shape(values), dtype=np.uint8))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            profile = {"nodata": nodata} if name == "label" and nodata is not None else {}
            write_tiff(folder / name / f"{index}.tif", array[None], **profile)
    return folder


def convert(source, out, *arguments):
    return main(["--source", str(source), "--output", str(out), "--modalities", "nir", *map(str, arguments)])


def stored(out):
    """The labels of all rows, in the order of their ids."""
    rows = sorted(load_rows(out, "train"), key=lambda row: row["id"])
    return [decode_row(row, ["nir"])[1] for row in rows]


def table(text):
    """(value, becomes) -> pixels, of the table that a conversion ends with."""
    lines = re.findall(r"^\| (.+?) \| (.+?) \| (\d+) \| [\d.]+% \|$", text, flags=re.MULTILINE)
    return {(value, becomes): int(pixels) for value, becomes, pixels in lines}


def suggested(text):
    """The `--classes` argument that a message prints."""
    return re.search(r"--classes '(\[.*?\])'", text)[1]


IDS = np.array([[0, 1, 2, 0], [0, 2, 2, 1]], dtype=np.uint8)


def test_nodata_of_a_label_counts_in_its_own_file(tmp_path, capsys):
    source = write_labels(tmp_path / "in", (IDS, None), (IDS, 0), (IDS, 2))
    assert convert(source, tmp_path / "out") == 0
    expected = [IDS, np.where(IDS == 0, 255, IDS), np.where(IDS == 2, 255, IDS)]
    for label, right in zip(stored(tmp_path / "out"), expected, strict=True):
        np.testing.assert_array_equal(label, right)
    printed = capsys.readouterr().out
    assert table(printed) == {
        ("0", "0 class_0"): 6,
        ("0", "ignored: nodata"): 3,
        ("1", "1 class_1"): 6,
        ("2", "2 class_2"): 6,
        ("2", "ignored: nodata"): 3,
    }
    assert "ignored: 6 of 24 label pixels, 25.00%" in printed
    assert f"0 is nodata in 1 of 3 label files ({source / 'label' / '1.tif'})" in printed
    assert DatasetMetadata.load(tmp_path / "out").statistics["ignored_pixels"] == 6
    # what is named is a class in all files
    assert convert(source, tmp_path / "named", "--classes", suggested(printed)) == 0
    assert all((label == IDS).all() for label in stored(tmp_path / "named"))
    assert "0 is nodata in 1 of 3 label files, and class_0 by --classes" in capsys.readouterr().out


def test_nodata_0_of_all_labels_is_said_with_what_makes_it_a_class(tmp_path, capsys):
    source = write_labels(tmp_path / "in", (IDS, 0), (IDS, 0))
    assert convert(source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "0 is nodata in all label files that hold it: ignored" in printed
    assert all((label[IDS == 0] == 255).all() for label in stored(tmp_path / "out"))
    assert convert(source, tmp_path / "mended", "--classes", suggested(printed)) == 0
    assert all((label == IDS).all() for label in stored(tmp_path / "mended"))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_a_mask_of_0_and_255_has_two_classes(tmp_path, capsys, dtype):
    mask = ((IDS > 0) * 255).astype(dtype)
    source = write_labels(tmp_path / "in", (mask, None), (mask * 0, None))
    assert convert(source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "255 stands beside 0 alone, as in a mask: it is class_1, and not ignored" in printed
    assert table(printed) == {("0", "0 class_0"): 11, ("255", "1 class_1"): 5}
    for label, right in zip(stored(tmp_path / "out"), (IDS > 0, IDS * 0), strict=True):
        np.testing.assert_array_equal(label, right)
    assert convert(source, tmp_path / "ignored", "--classes", '["dry"]') == 0
    assert "ignored: 5 of 16 label pixels, 31.25%" in capsys.readouterr().out


def test_a_mask_whose_0_or_255_is_nodata_is_no_guess(tmp_path, capsys):
    mask = ((IDS > 0) * 255).astype(np.uint8)
    for labels in ([(mask, 0)], [(mask, 0), (mask, None)], [(mask * 0 + 255, None)]):
        source = write_labels(tmp_path / f"in{len(list(tmp_path.iterdir()))}", *labels)
        assert convert(source, tmp_path / "out") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "are ignored. To make them classes:" in error and not (tmp_path / "out").exists()
        out = tmp_path / f"{source.name}_out"
        assert convert(source, out, "--classes", suggested(error)) == 0
        assert DatasetMetadata.load(out).statistics["ignored_pixels"] == 0
    assert convert(write_labels(tmp_path / "in", (mask, 255), (mask, 255)), tmp_path / "out") == 0
    assert DatasetMetadata.load(tmp_path / "out").class_names == ["class_0"]


def test_ids_that_no_pixel_has_are_said(tmp_path, capsys):
    source = write_labels(tmp_path / "in", (IDS + 1, None))
    assert convert(source, tmp_path / "from_1") == 0
    assert "class_0 has no pixel in any label file" in capsys.readouterr().out
    source = write_labels(tmp_path / "gaps", (np.array([[1, 2, 9, 5]], dtype=np.uint8), None))
    assert convert(source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "class_0, class_3 to class_4, class_6 to class_8 have no pixel in any label file" in printed
    assert len(DatasetMetadata.load(tmp_path / "out").class_names) == 10
    assert convert(source, tmp_path / "mended", "--classes", suggested(printed)) == 0
    assert DatasetMetadata.load(tmp_path / "mended").class_names == ["class_1", "class_2", "class_5", "class_9"]
    np.testing.assert_array_equal(stored(tmp_path / "mended"), [[[0, 1, 3, 2]]])
    classes = '[{"name": "a", "values": [1, 2, 5, 9]}, {"name": "b", "value": 7}]'
    assert convert(source, tmp_path / "given", "--classes", classes) == 0
    assert "Classes that have no pixel in any label file: b." in capsys.readouterr().out


def test_undeclared_0_is_a_class_and_that_is_said(tmp_path, capsys):
    assert convert(write_labels(tmp_path / "in", (IDS, None)), tmp_path / "out") == 0
    assert "0 is a class; where it means that nobody labelled, ignore it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dtype", "value"), [("int16", -1), ("int16", -100), ("uint16", 65535), ("int32", 2**31 - 1), ("float32", -1)]
)
def test_values_of_no_label_are_refused_with_what_ignores_them(tmp_path, capsys, dtype, value):
    label = np.where(IDS == 1, np.array(value, dtype=dtype), IDS.astype(dtype))
    source = write_labels(tmp_path / "in", (label, None))
    assert convert(source, tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(value) in error and not (tmp_path / "out").exists()
    assert convert(source, tmp_path / "out", "--classes", suggested(error)) == 0
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], np.where(IDS == 1, 255, IDS // 2))
    assert table(capsys.readouterr().out)[str(value), "ignored"] == 2
    # declared, it needs no word
    declared = write_labels(tmp_path / "declared", (label, value))
    assert convert(declared, tmp_path / "as_declared") == 0
    np.testing.assert_array_equal(stored(tmp_path / "as_declared")[0], np.where(IDS == 1, 255, IDS))


def test_masks_and_nan_hide_a_label(tmp_path, capsys):
    source = write_labels(tmp_path / "in", (np.where(IDS == 1, np.nan, IDS).astype(np.float32), None))
    write_tiff(source / "label" / "1.tif", IDS[None], mask=IDS != 2)
    write_tiff(source / "nir" / "1.tif", IDS[None])
    assert convert(source, tmp_path / "out") == 0
    first, second = stored(tmp_path / "out")
    np.testing.assert_array_equal(first, np.where(IDS == 1, 255, IDS))
    np.testing.assert_array_equal(second, np.where(IDS == 2, 255, IDS))
    assert table(capsys.readouterr().out)["none", "ignored: masked, not a number, or in no polygon"] == 5


def test_nodata_before_scale_and_offset_hides_a_label(tmp_path, capsys):
    rasterio = pytest.importorskip("rasterio")
    source = write_labels(tmp_path / "in", (IDS + 1, 3))
    with rasterio.open(source / "label" / "0.tif", "r+") as file:
        file.offsets = (-1.0,)
    assert convert(source, tmp_path / "out") == 0
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], np.where(IDS == 2, 255, IDS))


def test_classes_are_a_file_json_or_those_of_a_dataset(tmp_path, capsys):
    source = write_labels(tmp_path / "in", (IDS, None))
    entries = [
        {"name": "crop", "value": 1, "color": "#0a0b0c"},
        {"name": "cloud", "value": 2, "color": [1, 2, 3], "ignore": True},
        {"name": "soil", "values": [0], "ignore": False},
    ]
    text = json.dumps(entries)
    (tmp_path / "classes.json").write_text(text)
    for out, classes in (("a", text), ("b", tmp_path / "classes.json"), ("c", tmp_path / "a")):
        assert convert(source, tmp_path / out, "--classes", classes) == 0
        assert ("2", "ignored: cloud") in table(capsys.readouterr().out) or out == "c"
        metadata = DatasetMetadata.load(tmp_path / out)
        assert metadata.class_names == ["crop", "soil"] and metadata.palette[0] == [10, 11, 12]
        np.testing.assert_array_equal(stored(tmp_path / out)[0], [[1, 0, 255, 1], [1, 255, 255, 0]])
    card = (tmp_path / "a" / "README.md").read_text()
    assert "#0a0b0c" in card and "255 is ignored: 37.50% in train." in card


def test_recorded_classes_read_back_as_they_were():
    for entries in (
        [
            {"name": "a", "values": [0, 3], "color": [1, 2, 3]},
            {"name": "b", "value": 1},
            {"value": -1, "ignore": True},
        ],
        [{"name": "road", "colors": [[9, 8, 7], "#ffffff"]}, {"color": [0, 0, 0], "ignore": True}],
    ):
        class_map = ClassMap.of_entries(entries)
        again = ClassMap.of_entries(json.loads(json.dumps(class_map.entries())))
        assert (again.names, again.sources, again.palette) == (class_map.names, class_map.sources, class_map.palette)
        assert again.by_colour == class_map.by_colour


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ('[{"nmae": "a", "value": 1}]', "has the key 'nmae'; did you mean name?"),
        ('[{"name": "a", "value": 1, "colour": [1, 2, 3]}]', "did you mean color?"),
        ('[{"name": "a", "value": 1, "ignore": "yes"}]', "`ignore` is true or false"),
        ('[{"name": "a", "value": 1},', "Cannot read the classes from --classes"),
        ('[{"value": 1, "ignore": true}]', "names 0 classes"),
        ("nowhere.json", "Cannot read the classes from nowhere.json"),
        (".", "without a data set that has classes"),
    ],
)
def test_classes_that_cannot_be_read_are_refused_in_one_line(tmp_path, capsys, monkeypatch, classes, message):
    monkeypatch.chdir(tmp_path)
    source = write_labels(tmp_path / "in", (IDS, None))
    assert convert(source, tmp_path / "out", "--classes", classes) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "sgma-hf convert-rasters:" in line]
    assert len(error) == 1 and message in error[0]


def test_labels_in_colours_are_refused_with_their_colours(tmp_path, capsys):
    source = write_labels(tmp_path / "in", (IDS, None))
    write_tiff(source / "label" / "0.tif", np.stack([IDS * 100, IDS * 0, IDS * 0 + 7]))
    assert convert(source, tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "colour-coded, with 3 colours" in error
    assert convert(source, tmp_path / "out", "--classes", suggested(error)) == 0
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], IDS)
    assert ("(100, 0, 7)", "1 class_1") in table(capsys.readouterr().out)


def test_command_on_the_card_keeps_inline_classes(tmp_path):
    source = write_labels(tmp_path / "in", (IDS, None))
    classes = '["low/none", "mid", "high"]'
    assert convert(source, tmp_path / "out", "--classes", classes) == 0
    assert f"--classes '{classes}'" in (tmp_path / "out" / "README.md").read_text()


def test_large_labels_are_counted_strip_by_strip(tmp_path, monkeypatch):
    from sgma_hf.converters.folders import labels

    monkeypatch.setattr(labels, "_PIXELS_AT_ONCE", 50)
    values = np.random.default_rng(0).integers(0, 4, (30, 17)).astype(np.uint8)
    path = write_tiff(tmp_path / "a.tif", values[None], nodata=3)
    file = labels.count_label(read_info(path), by_colour=False)
    assert file.pixels == dict(enumerate(np.bincount(values.ravel()))) and file.nodata == 3


@pytest.mark.parametrize("seed", range(40))
def test_any_labels_become_what_numpy_says(tmp_path, seed):
    """Random types, values, nodata and masks by file; without classes, and with some."""
    generator = np.random.default_rng(seed)
    dtype = generator.choice(["uint8", "uint16", "int16", "int32", "float32"])
    files = []
    for index in range(3):
        values = generator.choice([0, 1, 2, 3, 7, 255], (5, 6)).astype(dtype)
        nodata = generator.choice([None, 0, 3, 255])
        mask = generator.random(values.shape) < 0.8 if generator.random() < 0.3 else None
        path = write_tiff(tmp_path / f"{index}.tif", values[None], nodata=nodata, mask=mask)
        hidden = np.zeros(values.shape, bool) if mask is None else ~mask
        files.append((read_info(path), values.astype(int), nodata, hidden))
    infos = [info for info, *_ in files]
    plain = survey_labels(infos, None)
    given = survey_labels(infos, '[{"name": "a", "values": [7, 1]}, {"name": "b", "value": 0}]', ignore_unmapped=True)
    ignored = 0
    for info, values, nodata, hidden in files:
        right = np.where(hidden | (values == nodata), 255, values)
        np.testing.assert_array_equal(map_label(info, plain.class_map), right)
        ignored += int((right == 255).sum())
        named = np.where(hidden, 255, np.select([np.isin(values, [1, 7]), values == 0], [0, 1], 255))
        np.testing.assert_array_equal(map_label(info, given.class_map), named)
    assert f"ignored: {ignored} of 90 label pixels" in plain.table()
    assert sum(table(plain.table()).values()) == 90
