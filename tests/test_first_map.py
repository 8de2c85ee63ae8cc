"""A new user's path, as `docs/first_map.md` prints it, on real rasters and polygons made from their labels."""

import csv
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from document_blocks import commands, run

from sgma_hf.commands import main
from sgma_hf.prediction.map_files import read_classes


DATA = os.environ.get("SGMA_TEST_DATA")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not DATA, reason="SGMA_TEST_DATA does not name a folder of real rasters"),
]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "first_map.md"
CLASSES = ["ground", "low vegetation", "high vegetation", "building"]


def write_scenes_and_polygons(folder):
    """The aerial tiles without their labels, which become one layer of polygons."""
    rasterio = pytest.importorskip("rasterio")
    from rasterio.features import shapes
    from vector_files import shapely, write_vectors

    found, names = [], []
    for tile in sorted(path for path in Path(DATA, "aerial").iterdir() if path.is_dir()):
        (folder / "scenes" / tile.name).mkdir(parents=True)
        for path in tile.glob("*.tif"):
            if path.stem != "label":
                shutil.copyfile(path, folder / "scenes" / tile.name / path.name)
        with rasterio.open(tile / "label.tif") as file:
            labels, crs = file.read(1), file.crs.to_string()
            for shape, value in shapes(labels, mask=labels < len(CLASSES), transform=file.transform):
                found.append(shapely.geometry.shape(shape))
                names.append(CLASSES[int(value)])
    write_vectors(folder / "landcover.gpkg", found, crs=crs, kind="Polygon", landuse=names)


def test_the_path_of_a_new_user_as_printed(tmp_path, monkeypatch, capsys):
    rasterio = pytest.importorskip("rasterio")
    write_scenes_and_polygons(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = commands(PAGE.read_text(encoding="utf-8"), "bash")
    assert [words[1] for words in lines] == [
        *("inspect", "convert-rasters", "train", "predict", "predict", "recolour", "report")
    ]
    inspected, converted, *others = lines
    run(inspected)
    # What is printed to be pasted is the page's next command.
    (printed,) = re.findall("^sgma-hf convert-rasters .*$", capsys.readouterr().out, flags=re.MULTILINE)
    assert commands(f"```bash\n{printed}\n```\n") == [converted]
    for words in (converted, *others):
        run(words)
    with open("maps/first/summary.csv", newline="") as file:
        rows = {row["scene"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(path.name for path in Path("scenes").iterdir())
    assert {row["missing"] for row in rows.values()} == {"", "nir rgb"} and not any(r["error"] for r in rows.values())
    with rasterio.open("maps/first/rural_484650.tif") as file, rasterio.open("scenes/rural_484650/dsm.tif") as first:
        labels = file.read(1)
        assert (file.crs, file.transform, file.shape) == (first.crs, first.transform, first.shape)
    hectares = (labels != 255).sum() * 0.5**2 / 1e4  # of Lambert-93, which is true to 0.1 % here
    counted = sum(float(rows["rural_484650"][f"area_ha_{name}"]) for name in CLASSES)
    np.testing.assert_allclose(counted, hectares, rtol=2e-3)
    names, colors = read_classes("maps/first/rural_484650.tif")
    assert names == sorted(CLASSES) and colors[0] == (0x60, 0x40, 0xA0)
    assert Path("maps/first/rural_484650.qml").read_text().count("<paletteEntry ") == len(CLASSES)
    page = Path("report.html").read_text(encoding="utf-8")
    assert all(name in page for name in rows) and not re.search(r"(src|href)=\"https?:", page)
    scored = ["evaluate", "--map", "maps/rural.tif", "--label", "landcover.gpkg", "--label_attribute", "landuse"]
    capsys.readouterr()
    assert main(scored) == 0
    assert "| building |" in capsys.readouterr().out
