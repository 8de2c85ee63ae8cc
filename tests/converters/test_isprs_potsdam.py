import datasets
import numpy as np
import pytest
from isprs_fixtures import (
    COLORS,
    POTSDAM_TEST,
    POTSDAM_TRAIN,
    SIZE,
    alpha_tag,
    save,
    seams,
    tile_bands,
    tile_decimetres,
    tile_heights,
    tile_ids,
    truncate,
    write_potsdam,
)

from sgma_hf.converters.benchmarks.check import CheckReport, check_scenes, survey_source
from sgma_hf.converters.benchmarks.dataset import ConversionOptions
from sgma_hf.converters.isprs import decode_isprs_label
from sgma_hf.converters.isprs_potsdam import DESCRIPTION, SPLIT_TILES, IsprsPotsdam, Potsdam, main
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.data.windows import Window


pytestmark = pytest.mark.long


pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_potsdam(tmp_path_factory.mktemp("source") / "Potsdam")


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """With absolute heights, six classes and tiles that overlap."""
    out = tmp_path_factory.mktemp("converted") / "potsdam"
    flags = ["--height", "dsm", "--classes", "6", "--tile_size", "24", "--num_proc", "1"]
    assert main(["--source", str(source), "--output", str(out), *flags]) == 0
    return out


def check(folder, **options):
    dataset = Potsdam(ConversionOptions(**options))
    report = CheckReport(dataset, folder, survey_source(dataset, folder))
    report.checks = check_scenes(dataset, report.survey.scenes)
    return report


def stitched(rows, tile, column, *, size=SIZE):
    """Put the tiles of a scene together again; pixels that a later tile of a test scene leaves to others stay."""
    whole = None
    for row in rows:
        if not row["id"].startswith(f"{tile}_y"):
            continue
        images, label = decode_row(row, ["rgb", "nir", "dsm"])
        array = label if column == "label" else images[column]
        whole = np.zeros((size, size, *array.shape[2:]), dtype=array.dtype) if whole is None else whole
        top, left = int(row["id"][-11:-7]), int(row["id"][-5:])
        part = whole[top : top + array.shape[0], left : left + array.shape[1]]
        part[...] = np.where(array == 255, part, array) if column == "label" else array
    return whole


def test_named_splits_have_the_published_tiles():
    tiles = {*POTSDAM_TRAIN, *POTSDAM_TEST}
    assert len(tiles) == len(POTSDAM_TRAIN) + len(POTSDAM_TEST) == 38
    assert [*SPLIT_TILES["official"]["train"]] == POTSDAM_TRAIN
    assert sorted(SPLIT_TILES["official"]["test"]) == sorted(POTSDAM_TEST)
    for name, splits in SPLIT_TILES.items():
        assert {split: len(tiles) for split, tiles in splits.items()} == DESCRIPTION.splits[name].num_scenes, name
        listed = [tile for tiles in splits.values() for tile in tiles]
        assert len(listed) == len(set(listed)) and set(listed) <= tiles, name
    assert set(SPLIT_TILES["ssrs"]["train"]) == set(
        "6_10 7_10 2_12 3_11 2_10 7_8 5_10 3_12 5_12 7_11 7_9 6_9 7_7 4_12 6_8 6_12 6_7 4_11".split()
    )
    assert not {"7_10", "2_10"} & set(SPLIT_TILES["geoseg"]["train"])


def test_label_decoder_reads_what_lossy_copies_mean():
    colors = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
    lossy = [(225, 227, 227), (12, 9, 240), (9, 222, 221), (30, 200, 7), (252, 255, 0), (250, 30, 20)]
    decoded = decode_isprs_label(np.array([colors, lossy], dtype=np.uint8), num_classes=6, is_eroded=False)
    np.testing.assert_array_equal(decoded, [[0, 1, 2, 3, 4, 5]] * 2)
    five = decode_isprs_label(np.array([colors], dtype=np.uint8), num_classes=5, is_eroded=False)
    np.testing.assert_array_equal(five, [[0, 1, 2, 3, 4, 255]])


@pytest.mark.parametrize(
    ("color", "is_eroded", "said"),
    [
        ((255, 0, 255), False, r"\(255, 0, 255\) in 1 pixels"),
        ((255, 0, 255), True, r"\(255, 0, 255\) in 1 pixels"),
        ((127, 255, 0), False, r"\(127, 255, 0\)"),
        ((0, 0, 0), False, "black occurs in the eroded labels only"),
    ],
)
def test_colours_that_are_no_class_are_named(color, is_eroded, said):
    colors = np.zeros((2, 2, 3), dtype=np.uint8) + np.array((0, 0, 255), dtype=np.uint8)
    colors[1, 1] = color
    with pytest.raises(ValueError, match=said):
        decode_isprs_label(colors, num_classes=6, is_eroded=is_eroded)


def test_black_of_eroded_labels_is_ignored():
    colors = np.array([[(0, 0, 0), (0, 255, 0)]], dtype=np.uint8)
    np.testing.assert_array_equal(decode_isprs_label(colors, num_classes=6, is_eroded=True), [[255, 3]])


def test_labels_of_other_bands_are_refused():
    with pytest.raises(ValueError, match=r"1 band\(s\) of uint8"):
        decode_isprs_label(np.zeros((2, 2, 1), dtype=np.uint8), num_classes=6, is_eroded=False)


def test_every_pixel_of_every_band_and_label_survives(source, converted):
    assert alpha_tag(source / "4_Ortho_RGBIR" / "4_Ortho_RGBIR" / "top_potsdam_2_10_RGBIR.tif") == 2
    for split, tiles in (("train", ("2_10", "4_12", "6_7")), ("test", ("3_13", "5_15"))):
        rows = load_rows(converted, split)
        for tile in tiles:
            bands = tile_bands(tile, 4)
            np.testing.assert_array_equal(stitched(rows, tile, "rgb"), bands[..., :3])
            assert (bands[..., 3] == 0).any()  # an alpha of 0 would hide these pixels
            np.testing.assert_array_equal(stitched(rows, tile, "nir"), bands[..., 3])
            np.testing.assert_array_equal(stitched(rows, tile, "label"), tile_ids(tile))
            heights = stitched(rows, tile, "dsm")
            expected = tile_heights(tile)
            if tile == "3_13":
                assert np.isnan(heights[:, -1]).all()
                heights, expected = heights[:, :-1], expected[:, :-1]
            assert heights.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_rows_have_the_one_schema_and_ids_begin_with_the_tile(converted):
    rows = datasets.load_dataset(str(converted))
    assert list(rows) == ["train", "test"]
    assert list(rows["train"].features) == ["id", "rgb", "nir", "dsm", "label"]
    assert (len(rows["train"]), len(rows["test"])) == (24 * 4, 14 * 4)
    assert rows["train"][0]["id"] == "2_10_y00000_x00000" and rows["train"][3]["id"] == "2_10_y00016_x00016"
    streamed = list(datasets.load_dataset(str(converted), split="test", streaming=True))
    assert [row["id"] for row in streamed] == rows["test"]["id"]
    np.testing.assert_array_equal(np.array(streamed[5]["label"]), np.array(rows["test"][5]["label"]))


def test_normalized_heights_keep_their_decimetres_and_the_short_tile_repeats_its_last_column(source):
    dataset = Potsdam()
    scenes = {scene.name: scene for scene in dataset.find(source).scenes}
    height = dataset.read(scenes["3_13"], "ndsm", Window(0, 0, SIZE, SIZE))
    assert height.shape == (SIZE, SIZE) and height.dtype == np.uint8
    np.testing.assert_array_equal(height[:, -1], height[:, -2])
    expected = tile_decimetres("3_13").astype(int)
    # flat blocks of 8 pixels change by a grey level or two in JPEG of quality 95
    assert np.abs(height[:, :-1].astype(int) - expected[:, :-1]).max() <= 3
    last = dataset.read(scenes["3_13"], "ndsm", Window(4, SIZE - 1, 6, 1))
    np.testing.assert_array_equal(last, height[4:10, -1:])
    dataset.readers.close()


@pytest.mark.parametrize(
    "layout",
    [
        {"doubled": False},
        {"doubled": True, "padded": True},
        {"doubled": False, "labels": "flat"},
        {"doubled": True, "labels": "participants"},
        {"doubled": False, "compression": None},
    ],
)
def test_all_layouts_are_found(tmp_path, layout):
    tiles = ["2_10", "6_7", "4_12", "3_13", "5_15"]
    root = write_potsdam(tmp_path, tiles=tiles, **layout)
    survey = Potsdam().find(root)
    assert [scene.name for scene in survey.scenes] == ["2_10", "4_12", "6_7", "3_13", "5_15"]
    for scene in survey.scenes:
        has_label = layout.get("labels") != "participants" or scene.split == "train"
        absent = [column for column, path in scene.files.items() if path is None]
        assert absent == ([] if has_label else ["label"])


def test_lossy_label_is_taken_from_the_archive_for_participants_where_it_is_there(source, tmp_path):
    files = {scene.name: scene.files for scene in Potsdam().find(source).scenes}
    assert files["4_12"]["label"].parent.name == "5_Labels_for_participants"
    assert files["2_10"]["label"].parent.name == "5_Labels_all"
    report = check(write_potsdam(tmp_path, tiles=["4_12"], labels="flat"))
    (note,) = [problem for problem in report.of_kind("note") if problem.scene == "train/4_12"]
    assert "compressed with loss" in note.reason and "for_participants.zip" in note.remedy
    expected = tile_ids("4_12")
    assert report.checks[0].class_pixels == np.bincount(expected.ravel(), minlength=6)[:5].tolist()


@pytest.mark.parametrize("labels", ["all", "participants"])
def test_eroded_labels_of_both_spellings(tmp_path, labels):
    root = write_potsdam(tmp_path, tiles=["2_10", "4_12", "5_15"], labels=labels)
    dataset = Potsdam(ConversionOptions(choices={"labels": "eroded", "classes": 6}))
    found = {scene.name: dataset.read(scene, "label", Window(0, 0, SIZE, SIZE)) for scene in dataset.find(root).scenes}
    dataset.readers.close()
    for tile in ("2_10", "4_12"):
        expected = tile_ids(tile)
        np.testing.assert_array_equal(found[tile], np.where(seams(expected), 255, expected))
    assert (found["5_15"] is None) == (labels == "participants")


def test_both_labels_come_from_one_conversion(tmp_path):
    root = write_potsdam(tmp_path / "source", labels="all")
    flags = ["--source", str(root), "--classes", "6", "--tile_size", "24", "--num_proc", "1"]
    assert main([*flags, "--labels", "both", "--output", str(tmp_path / "both")]) == 0
    for labels, column in (("full", "label"), ("eroded", "scoring_label")):
        assert main([*flags, "--labels", labels, "--output", str(tmp_path / labels)]) == 0
        for split in ("train", "test"):
            pairs = zip(load_rows(tmp_path / labels, split), load_rows(tmp_path / "both", split), strict=True)
            for alone, together in pairs:
                assert together[column] == alone["label"] and together["id"] == alone["id"]
    card = (tmp_path / "both" / "README.md").read_text()
    assert "`scoring_label`: eroded labels" in card and "`label`: full labels" in card
    builder = IsprsPotsdam(data_dir=str(root), cache_dir=str(tmp_path / "cache"), tile=24, labels="both", classes=6)
    first = next(iter(builder.as_streaming_dataset(split="train")))
    seen = np.array(first["label"]) != np.array(first["scoring_label"])
    assert seen.any() and (np.array(first["scoring_label"])[seen] == 255).all()


def test_labels_to_score_by_that_are_not_there_are_told(tmp_path, capsys):
    root = write_potsdam(tmp_path / "source", labels="all", tiles=["2_10", "5_15"])
    for path in root.rglob("*label_no*oundary*"):
        if "2_10" in path.name:
            path.unlink()
    assert main(["--source", str(root), "--check", "--labels", "both", "--num_proc", "1"]) == 1
    said = capsys.readouterr().out
    assert "eroded labels of 24 tiles" in said and "5_Labels_for_participants_no_Boundary.zip" in said
    assert "full labels of 23 tiles" in said


def test_test_tiles_without_labels_are_rows_with_a_null_label(tmp_path, capsys):
    root = write_potsdam(tmp_path / "source", labels="participants")
    assert main(["--source", str(root), "--output", str(tmp_path / "out"), "--num_proc", "1"]) == 0
    assert "full labels of 14 test tiles" in capsys.readouterr().out
    assert all(row["label"] is None for row in load_rows(tmp_path / "out", "test"))
    assert all(row["label"] is not None for row in load_rows(tmp_path / "out", "train"))
    assert "| test | 14 | 14 | 14 |" in (tmp_path / "out" / "README.md").read_text()


def test_complete_copy_passes_its_check(source, capsys):
    assert main(["--source", str(source), "--check", "--num_proc", "1", "--classes", "6"]) == 0
    said = capsys.readouterr().out
    assert "complete and sound" in said
    assert "train             24         24        24       24" in said
    assert "29.6%" in said  # the published share of impervious surfaces
    assert "--exclude 7_10" in said


def test_tile_with_a_wrong_label_can_be_left_out(source):
    for options in ({"exclude": ("7_10",)}, {"split": "geoseg"}):
        dataset = Potsdam(ConversionOptions(**options))
        survey = survey_source(dataset, source)
        assert "7_10" not in {scene.name for scene in survey.scenes}
        assert not any("7_10" in problem.what for problem in survey.problems)
    with pytest.raises(ValueError, match=r"--exclude names \['9_9'\]"):
        survey_source(Potsdam(ConversionOptions(exclude=("9_9",))), source)


def test_what_is_damaged_is_named_and_the_rest_is_still_checked(tmp_path, capsys):
    root = write_potsdam(tmp_path / "source", tiles=["2_10", "2_11", "2_12", "3_10", "3_11", "5_15"], doubled=False)
    truncate(root / "4_Ortho_RGBIR" / "top_potsdam_2_10_RGBIR.tif")
    truncate(root / "1_DSM_normalisation" / "dsm_potsdam_02_11_normalized_lastools.jpg")
    save(root / "5_Labels_all" / "top_potsdam_2_12_label.tif", COLORS[tile_ids("2_12")[:20]])
    painted = COLORS[tile_ids("3_10")].copy()
    painted[3, 5] = (255, 0, 255)
    save(root / "5_Labels_all" / "top_potsdam_3_10_label.tif", painted)
    save(root / "4_Ortho_RGBIR" / "top_potsdam_3_11_RGBIR.tif", tile_bands("3_11", 3))
    report = check(root)
    damaged = {problem.scene.split("/")[1]: problem for problem in report.of_kind("damaged")}
    assert set(damaged) == {"2_10", "2_11", "2_12", "3_10", "3_11"}
    assert "top_potsdam_2_10_RGBIR.tif" in damaged["2_10"].what and "4_Ortho_RGBIR.zip" in damaged["2_10"].remedy
    assert "02_11_normalized_lastools.jpg" in damaged["2_11"].what
    assert "has 40 x 40 pixels, its scene 40 x 20" in damaged["2_12"].reason
    assert "(255, 0, 255) in 1 pixels" in damaged["3_10"].reason
    assert "holds bands of 3 x uint8, expected 4 x uint8" in damaged["3_11"].reason
    assert [scene.name for scene in report.sound_scenes()] == ["5_15"]
    assert sum(report.checks[-1].class_pixels) > 0
    out = tmp_path / "out"
    flags = ["--source", str(root), "--output", str(out), "--allow_missing", "--num_proc", "1"]
    capsys.readouterr()
    assert main(flags) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert main([*flags, "--skip_damaged"]) == 0
    said = capsys.readouterr().out
    assert "skipped because of damage: train/2_10, train/2_11, train/2_12, train/3_10, train/3_11" in said
    assert datasets.load_dataset(str(out)).num_rows == {"test": 1}
    assert "train/2_10, train/2_11" in (out / "README.md").read_text()
    assert main(["--source", str(root), "--check", "--num_proc", "1"]) == 1


def test_what_is_missing_is_named_with_the_archive_that_has_it(tmp_path, capsys):
    root = write_potsdam(tmp_path / "source", tiles=["2_10", "5_15"], doubled=False)
    for path in [*(root / "1_DSM").iterdir()]:
        path.unlink()
    (root / "1_DSM").rmdir()
    (root / "1_DSM.rar").write_bytes(b"Rar!")
    report = check(root, choices={"height": "dsm"})
    said = {problem.what: problem for problem in report.of_kind("missing")}
    assert f"unrar x '{root / '1_DSM.rar'}'" in said["dsm of all tiles"].remedy
    assert "4_Ortho_RGBIR.zip" in next(
        problem.remedy for what, problem in said.items() if what.startswith("rgb of 36")
    )
    assert not report.is_sound
    flags = ["--source", str(root), "--height", "dsm", "--output", str(tmp_path / "out"), "--num_proc", "1"]
    assert main(flags) == 2
    assert "--allow_missing" in capsys.readouterr().err
    assert main([*flags, "--allow_missing"]) == 0
    assert [row["dsm"] for row in load_rows(tmp_path / "out", "train")] == [None]


@pytest.mark.parametrize("place", ["..", "../..", "2_Ortho_RGB", "empty"])
def test_wrong_folder_is_found_or_explained(tmp_path, capsys, place):
    root = write_potsdam(tmp_path / "data" / "Potsdam", tiles=["2_10", "5_15"])
    (root / "empty").mkdir()
    flags = ["--source", str(root / place), "--num_proc", "1"]
    status = main([*flags, "--output", str(tmp_path / "out"), "--allow_missing"])
    if place.startswith(".."):
        assert status == 0
        assert datasets.load_dataset(str(tmp_path / "out")).num_rows == {"train": 1, "test": 1}
        return
    if place == "empty":
        assert status == 2
    main([*flags, "--check"])
    said = capsys.readouterr()
    assert f"Did you mean --source {root}?" in said.out + said.err


def test_other_splits_divide_the_same_files(source):
    found = {scene.name: scene.split for scene in Potsdam(ConversionOptions(split="sherrah")).find(source).scenes}
    assert found["7_8"] == "validation" and found["5_15"] == "test" and found["2_10"] == "train"
    found = {scene.name: scene.split for scene in Potsdam(ConversionOptions(split="ssrs")).find(source).scenes}
    assert found["7_12"] == "test" and "5_15" not in found and len(found) == 24


def test_builder_gives_the_converted_rows(source, converted, tmp_path):
    options = {"data_dir": str(source), "cache_dir": str(tmp_path), "tile": 24, "height": "dsm", "classes": 6}
    builder = IsprsPotsdam(**options)
    builder.download_and_prepare()
    built = builder.as_dataset(split="test")
    rows = datasets.load_dataset(str(converted), split="test")
    assert built.features == rows.features and built["id"] == rows["id"]
    undecoded = datasets.Image(decode=False)
    for column in ("rgb", "nir", "dsm", "label"):
        built, rows = built.cast_column(column, undecoded), rows.cast_column(column, undecoded)
        assert [row["bytes"] for row in built[column]] == [row["bytes"] for row in rows[column]]
    first = next(iter(IsprsPotsdam(**options).as_streaming_dataset(split="train")))
    np.testing.assert_array_equal(np.array(first["nir"]), tile_bands("2_10", 4)[:24, :24, 3])


def test_builder_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="data_dir"):
        IsprsPotsdam(cache_dir=str(tmp_path)).download_and_prepare()
    root = write_potsdam(tmp_path / "source", tiles=["2_10"])
    with pytest.raises(ValueError, match=r"allow_missing=True"):
        IsprsPotsdam(data_dir=str(root), cache_dir=str(tmp_path / "cache")).download_and_prepare()
    builder = IsprsPotsdam(data_dir=str(root), cache_dir=str(tmp_path / "cache"), allow_missing=True)
    builder.download_and_prepare()
    assert builder.as_dataset(split="train").num_rows == 1
