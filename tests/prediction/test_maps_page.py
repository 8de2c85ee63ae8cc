"""The page of a folder of maps: every scene and figure, texts as texts, and nothing that is not on it."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from raster_scenes import PALETTE, HeightClasses, height_classes, height_processor, predict_height_classes, write_tiff

from sgma_hf.commands import main
from sgma_hf.prediction.maps import MapMaker
from sgma_hf.prediction.report.maps_page import maps_page
from sgma_hf.prediction.report.shown_maps import read_maps
from sgma_hf.prediction.scenes.many import SceneLedger, predict_scenes
from sgma_hf.prediction.scenes.summary import write_summary
from sgma_hf.rasters.listings.sources import list_scenes
from sgma_hf.visualization.palette import colorize


pytest.importorskip("rasterio")

NAMES = ["<i>low</i>", "mittel & größer 中", 'high" onclick="x']
SCENES = ["a", "b&<i>", "c"]
SIZE = 40
COMMAND = "sgma-hf predict --scenes 'a <i> b'"
CONFUSION = [[90, 10, 0], [20, 70, 10], [0, 0, 0]]
RESULTS = {
    "class_names": NAMES,
    "missing": "absent",
    "scored_classes": "union",
    "rows_without_label": 0,
    "rows_without_modality": 0,
    "unscored_combinations": [],
    "average_miou": 0.5,
    "top1_miou": 0.5,
    "top1_combination": "dsm+<i>",
    "last1_miou": 0.5,
    "last1_combination": "rgb",
    "combinations": {
        name: {
            "miou": 0.5,
            "f1": 0.625,
            "accuracy": 0.8,
            "kappa": 0.25,
            "iou": [0.75, 0.25, None],
            "rows": 3,
            "rows_complete": 3,
            "uncovered_share": 0.0,
            "confusion": CONFUSION,
        }
        for name in ("rgb", "dsm+<i>")
    },
}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the texts of its cells and of all of it."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self.text, self._in_cell = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._in_cell:
            self.cells[-1] += data

    @property
    def pictures(self):
        sources = [(found["alt"], found["src"]) for tag, found in self.elements if tag == "img"]
        prefix = "data:image/png;base64,"
        assert all(source.startswith(prefix) for _, source in sources)
        return [(alt, Image.open(io.BytesIO(base64.b64decode(source[len(prefix) :])))) for alt, source in sources]


def heights_of(seed):
    return np.random.default_rng(seed).uniform(0, 20, (1, SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def maps(tmp_path):
    """Maps of three scenes, of which the last one has no raster that can be read, with their table."""
    for seed, name in enumerate(SCENES):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        write_tiff(tmp_path / "scenes" / name / "dsm.tif", heights_of(seed))
    (tmp_path / "scenes" / "c" / "dsm.tif").write_bytes(b"no raster")
    return made(tmp_path, ".tif", extras=["confidence"])


def made(tmp_path, suffix, **options):
    model, output = HeightClasses(), tmp_path / f"maps{suffix}"
    model.config.id2label = dict(enumerate(NAMES))
    maker = MapMaker(model, height_processor(), tile_size=32)
    ledger = SceneLedger(output, suffix)
    for record in predict_scenes(
        maker, list_scenes(tmp_path / "scenes", ["dsm", "rgb"]), output, suffix=suffix, **options
    ):
        if record.error is None:
            ledger.write(replace(record, reliance={"dsm": 0.75}, agreement={"dsm": 0.5}))
    ledger.note_command(COMMAND, "runs/<i>", "0.4")
    write_summary(ledger, SCENES, NAMES, ["dsm", "rgb"])
    return output


def test_the_page_has_every_scene_and_figure_and_needs_nothing_else(maps):
    text = maps_page(read_maps(maps), "Maps <i>", RESULTS)
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"i", "script", "link", "iframe", "object", "base", "form"}
    for _, attributes in page.elements:
        assert not {"onclick", "onload", "onerror"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#") and attributes.get("src", "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text and "default-src 'none'" in text
    assert all(name in page.text for name in [*SCENES, *NAMES])
    for said in ("Maps <i>", "2 maps, 1 failed", "Missing: rgb", COMMAND, "runs/<i>", "Cannot read"):
        assert said in page.text, said
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [attributes["href"][1:] for tag, attributes in page.elements if tag == "a"]
    assert len(ids) == len(set(ids)) == 2 and set(links) == set(ids)
    assert "75.0%" in page.cells and "0.50" in page.cells and "missing" in page.cells


def test_areas_and_pictures_are_those_of_the_maps(maps):
    page = Page(maps_page(read_maps(maps), "Maps"))
    classes = [height_classes(heights_of(seed)[0]) for seed in (0, 1)]
    pictures = dict(page.pictures)
    for name, expected in zip(SCENES, classes, strict=False):
        painted = np.asarray(pictures[f"Map of {name}"].convert("RGB"))
        np.testing.assert_array_equal(painted, colorize(expected, PALETTE))
    rows = [page.cells[index : index + 3] for index, cell in enumerate(page.cells) if cell in NAMES]
    for index, name in enumerate(NAMES):
        counts = [int((expected == index).sum()) for expected in classes]
        in_all, *in_each = [row for row in rows if row[0] == name and row[2].endswith("%")]
        for row, pixels, total in zip([in_all, *in_each], [sum(counts), *counts], [2, 1, 1], strict=True):
            assert float(row[1]) == pytest.approx(pixels / 10_000, rel=2e-3)  # the grid's metres are not the ground's
            assert row[2] == f"{pixels / (total * SIZE**2):.1%}"


def test_a_folder_of_maps_without_a_table_shows_what_the_files_tell(maps):
    with_table = [one.row for one in read_maps(maps).maps if one.classes]
    for path in [*maps.glob("summary.*"), maps / ".scenes" / "run.json", maps / ".scenes" / "command.json"]:
        path.unlink()
    found = read_maps(maps)
    assert [one.row["scene"] for one in found.maps] == SCENES[:2] and not found.made
    for one, row in zip(found.maps, with_table, strict=True):
        for key in ("area_ha", "confidence", *(f"{kind}_{name}" for kind in ("area_ha", "share") for name in NAMES)):
            assert one.row[key] == pytest.approx(row[key], rel=1e-6), key
        assert list(one.pictures) == ["classes", "confidence"]
    page = Page(maps_page(found, "Maps"))
    assert "Missing: not recorded" in page.text and "not recorded: the maps were made one by one" in page.text


def test_means_of_extras_are_over_pixels_with_data(tmp_path):
    heights = heights_of(0)
    heights[:, :10] = -9999
    write_tiff(tmp_path / "dsm.tif", heights)
    (tmp_path / "maps").mkdir()
    predict_height_classes({"dsm": str(tmp_path / "dsm.tif")}, tmp_path / "maps" / "a.tif", extras=["confidence"])
    (shown,) = read_maps(tmp_path / "maps").maps
    logits = np.stack([-(heights[0, 10:] - 10) / 4, np.full((30, SIZE), 0.5), (heights[0, 10:] - 10) / 4]).astype(
        float
    )
    confidence = np.exp(logits.max(0)) / np.exp(logits).sum(0)
    assert shown.row["confidence"] == pytest.approx(confidence.mean(), rel=1e-5)
    assert shown.row["share_unmapped"] == 0.25


def test_pictures_say_their_classes_and_their_colours(maps, tmp_path):
    folder = made(tmp_path, ".png")
    (folder / "summary.parquet").unlink()
    shown = read_maps(folder).maps
    assert [list(one.classes) for one in shown] == [NAMES] * 2
    assert [list(map(list, one.classes.values())) for one in shown] == [PALETTE] * 2


def test_shares_of_maps_without_a_place_are_those_of_their_pixels(tmp_path):
    for seed, name in enumerate(SCENES):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        write_tiff(tmp_path / "scenes" / name / "dsm.tif", heights_of(seed)[:, : 10 * (seed + 1)], crs=None)
    page = Page(maps_page(read_maps(made(tmp_path, ".tif")), "Maps"))
    classes = [height_classes(heights_of(seed)[0, : 10 * (seed + 1)]).ravel() for seed in range(3)]
    counts = np.bincount(np.concatenate(classes), minlength=3)
    for name, count in zip(NAMES, counts.tolist(), strict=True):
        start = page.cells.index(name)
        assert page.cells[start + 1 : start + 3] == ["–", f"{count / counts.sum():.1%}"]
    assert "3 maps" in page.text and " ha" not in page.text.split("Areas and legend")[0].split("3 maps")[1]


def test_a_folder_where_every_scene_failed_is_shown(maps):
    for name in ("a.tif", "b&<i>.tif"):
        (maps / name).unlink()
    page = Page(maps_page(read_maps(maps), "Maps"))
    assert "0 maps, 3 failed" in page.text and "a.tif is not there" in page.text


def test_a_map_that_is_gone_is_named(maps):
    (maps / "a.tif").unlink()
    rows = {one.row["scene"]: one.row["error"] for one in read_maps(maps).maps}
    assert rows["a"] == "a.tif is not there" and rows["b&<i>"] is None


def test_the_command_writes_scores_and_confusions(maps, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    words = ["report", "--maps", str(maps), "--output", str(tmp_path / "pages" / "a.html")]
    assert main([*words, "--evaluation", str(tmp_path / "results.json")]) == 0
    assert "a.html: 3 scenes, 0.0 MB" in capsys.readouterr().out
    page = Page((tmp_path / "pages" / "a.html").read_text())
    for cells in (["dsm+<i>", "50.00", "62.50", "80.00", "25.00", "75.00", "25.00", "–", "3"], ["90.0%90", "10.0%10"]):
        starts = [index for index, cell in enumerate(page.cells) if cell == cells[0]]
        assert any(page.cells[start : start + len(cells)] == cells for start in starts), cells
    assert "Confusion from rgb" in page.text and "Confusion from dsm+<i>" in page.text


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        ({}, [], "maps holds no map that `sgma-hf predict` wrote"),
        ({"maps/a.txt": "x"}, ["--maps", "nowhere"], "There is no folder nowhere"),
        ({}, ["--output", "a.pdf"], "expected a name that ends in .html"),
        ({"r.json": "[]"}, ["--evaluation", "r.json"], "r.json holds no scores of combinations"),
        ({"r.json": "{"}, ["--evaluation", "r.json"], "r.json holds no scores of combinations"),
        ({}, ["--evaluation", "r.json"], "No such file"),
        ({"maps/summary.parquet": "x"}, [], "summary.parquet"),
        ({"maps/a.tif": "x"}, [], "a.tif"),
    ],
)
def test_what_is_no_map_and_no_result_is_refused_in_one_line(files, more, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "maps").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["report", "--maps", "maps", "--output", "a.html", *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("sgma-hf report: ")
    assert not list(tmp_path.glob("*.html"))


def test_another_table_is_refused(tmp_path, capsys):
    (tmp_path / "maps").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "maps" / "summary.parquet")
    assert main(["report", "--maps", str(tmp_path / "maps"), "--output", str(tmp_path / "a.html")]) == 2
    assert "is no summary of `sgma-hf predict --scenes`" in capsys.readouterr().err
