"""What lies beside a map: names, colours, style and place, as GDAL and other programs read them."""

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from raster_scenes import CLASSES, PALETTE, HeightClasses, height_classes, height_processor, write_tiff

from sgma_hf.prediction.map_files import read_classes, recolor_map
from sgma_hf.prediction.maps import predict_raster
from sgma_hf.visualization.palette import SHARE_RAMP


rasterio = pytest.importorskip("rasterio")
COLORS = [f"#{bytes(color).hex()}" for color in PALETTE]


def predict(folder, name, **options):
    heights = np.random.default_rng(0).uniform(0, 20, (1, 40, 50)).astype(np.float32)
    affine = rasterio.Affine(0.5, 0.1, 500000.0, 0.05, -0.4, 4800000.0)
    dsm = write_tiff(folder / "dsm.tif", heights, transform=affine)
    predict_raster(HeightClasses(), height_processor(), {"dsm": dsm}, folder / name, tile_size=32, **options)
    return folder / name


def as_gdal_reads(path):
    """A VRT of a raster holds what GDAL knows of it."""
    vrt = path.with_name(f"{path.name}.vrt")
    rasterio.shutil.copy(path, vrt, driver="VRT")
    band = ElementTree.fromstring(vrt.read_text()).find("VRTRasterBand")
    vrt.unlink()
    table = band.find("GDALRasterAttributeTable")
    columns = [column.find("Name").text for column in table.findall("FieldDefn")]
    rows = [[cell.text for cell in row.findall("F")] for row in table.findall("Row")]
    return [entry.text for entry in band.find("CategoryNames")], columns, rows


def style_of(path):
    renderer = ElementTree.parse(path).getroot().find("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = renderer.findall("colorPalette/paletteEntry")
    return [(int(entry.get("value")), entry.get("color"), entry.get("label")) for entry in entries]


def ogc_style_of(path):
    space = {"sld": "http://www.opengis.net/sld"}
    where = "sld:NamedLayer/sld:UserStyle/sld:FeatureTypeStyle/sld:Rule/sld:RasterSymbolizer/sld:ColorMap"
    (colors,) = ElementTree.parse(path).getroot().findall(where, space)
    assert colors.get("type") == "values"
    entries = colors.findall("sld:ColorMapEntry", space)
    assert {entry.get("opacity") for entry in entries} == {"1"}
    return [(int(entry.get("quantity")), entry.get("color"), entry.get("label")) for entry in entries]


@pytest.mark.parametrize("name", ["map.tif", "map.png"])
def test_gdal_and_qgis_find_names_and_colours_of_the_classes_alone(tmp_path, name):
    path = predict(tmp_path, name)
    names, columns, rows = as_gdal_reads(path)
    assert names == CLASSES
    assert columns == ["Value", "Class", "Red", "Green", "Blue", "Alpha"]
    assert rows == [[str(i), CLASSES[i], *map(str, PALETTE[i]), "255"] for i in range(len(CLASSES))]
    expected = list(zip(range(len(CLASSES)), COLORS, CLASSES, strict=True))
    assert style_of(tmp_path / "map.qml") == ogc_style_of(tmp_path / "map.sld") == expected


def test_shares_have_a_style_from_dark_to_light(tmp_path):
    predict(tmp_path, "map.tif", extras=["confidence"])
    renderer = ElementTree.parse(tmp_path / "map_confidence.qml").getroot().find("pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("singlebandpseudocolor", "1")
    items = renderer.findall("rastershader/colorrampshader/item")
    values, colors = zip(*((float(item.get("value")), item.get("color")) for item in items), strict=True)
    assert values == (0, 0.25, 0.5, 0.75, 1)
    assert [sum(bytes.fromhex(color[1:])) for color in colors] == sorted(sum(color) for color in SHARE_RAMP)
    style = (tmp_path / "map_confidence.sld").read_text()
    assert '<ColorMap type="ramp">' in style and style.count("<ColorMapEntry ") == 5


QGIS = """
import os, sys
from qgis.core import *
from qgis.PyQt.QtCore import QSize
QgsApplication.setPrefixPath("/usr", True)
application = QgsApplication([], False)
application.initQgis()
path, picture, width, height = sys.argv[1:]
layer = QgsRasterLayer(path, "map")  # which finds its style by itself
settings = QgsMapSettings()
settings.setLayers([layer])
settings.setDestinationCrs(layer.crs())
settings.setExtent(layer.extent())
settings.setOutputSize(QSize(int(width), int(height)))
job = QgsMapRendererSequentialJob(settings)
job.start()
job.waitForFinished()
job.renderedImage().save(picture)
print(*(label for label, _ in layer.renderer().legendSymbologyItems()), sep="|", flush=True)
os._exit(0)  # taking it down may crash
"""


def test_qgis_draws_the_classes_in_their_colours(tmp_path):
    """Debian's `python3-qgis`, where it is installed."""
    python = "/usr/bin/python3"
    environment = {"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    if not Path(python).exists() or subprocess.run([python, "-c", "import qgis.core"], capture_output=True).returncode:
        pytest.skip("QGIS is not installed")
    heights = np.random.default_rng(0).uniform(0, 20, (1, 40, 50)).astype(np.float32)
    dsm, path = write_tiff(tmp_path / "dsm.tif", heights), tmp_path / "map.tif"
    predict_raster(HeightClasses(), height_processor(), {"dsm": dsm}, path, tile_size=32)
    command = [python, "-c", QGIS, str(path), str(tmp_path / "seen.png"), "50", "40"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["|".join(CLASSES)]
    seen = np.asarray(Image.open(tmp_path / "seen.png").convert("RGB"))
    np.testing.assert_array_equal(seen, np.array(PALETTE)[height_classes(heights[0])])


def test_bands_of_extras_have_statistics(tmp_path):
    predict(tmp_path, "map.tif", extras=["confidence"])
    with rasterio.open(tmp_path / "map_confidence.tif") as file:
        assert file.descriptions == ("probability of the class", "entropy")
        for band in file.indexes:
            values, tags = file.read(band), file.tags(band)
            found = [float(tags[f"STATISTICS_{name}"]) for name in ("MINIMUM", "MAXIMUM", "MEAN", "STDDEV")]
            np.testing.assert_allclose(found, [values.min(), values.max(), values.mean(), values.std()], rtol=1e-4)


def test_pictures_lie_where_the_raster_does(tmp_path):
    predict(tmp_path, "map.png")
    with rasterio.open(tmp_path / "dsm.tif") as source:
        for name in ("map.png", "map_color.png"):
            with rasterio.open(tmp_path / name) as file:
                assert file.crs == source.crs and file.transform == source.transform
        a, d, b, e, x, y = map(float, (tmp_path / "map_color.pgw").read_text().split())
        np.testing.assert_allclose([a, d, b, e], [0.5, 0.05, 0.1, -0.4])
        np.testing.assert_allclose([x, y], source.xy(0, 0), rtol=1e-12)


def test_legend_shows_the_classes_that_are_there(tmp_path):
    predict(tmp_path, "map.png")
    shown = {tuple(color) for color in np.asarray(Image.open(tmp_path / "map_legend.png")).reshape(-1, 3).tolist()}
    present = np.unique(np.asarray(Image.open(tmp_path / "map.png")))
    assert {index for index, color in enumerate(PALETTE) if tuple(color) in shown} == set(present.tolist())


def test_a_style_drawn_by_hand_stays_and_what_is_out_of_date_goes(tmp_path):
    path = predict(tmp_path, "map.tif")
    (tmp_path / "map.qml").write_text("<qgis/>")
    (tmp_path / "map.sld").write_text("<StyledLayerDescriptor/>")
    (tmp_path / "map.tif.aux.xml").write_text("<PAMDataset/>")  # statistics of another map, say
    predict(tmp_path, "map.tif")
    assert (tmp_path / "map.qml").read_text() == "<qgis/>"
    assert (tmp_path / "map.sld").read_text() == "<StyledLayerDescriptor/>"
    assert as_gdal_reads(path)[0] == CLASSES
    (tmp_path / "map_confidence.tif.aux.xml").write_text("<PAMDataset/>")
    predict(tmp_path, "map.tif", extras=["confidence"])
    assert not (tmp_path / "map_confidence.tif.aux.xml").exists()


@pytest.mark.parametrize("name", ["map.tif", "map.png"])
def test_a_map_gets_other_colours_and_is_the_same_map_in_its_own(tmp_path, name):
    options = {"extras": ["confidence"]} if name == "map.tif" else {}
    path = predict(tmp_path, name, **options)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    recolor_map(path, '[{"name": "high", "color": "#010203"}]')
    assert set(tmp_path.iterdir()) == set(before)
    names, colors = read_classes(path)
    assert (names, colors) == (CLASSES, [*map(tuple, PALETTE[:2]), (1, 2, 3)])
    assert style_of(tmp_path / "map.qml")[2] == ogc_style_of(tmp_path / "map.sld")[2] == (2, "#010203", "high")
    if name == "map.png":
        painted = np.asarray(Image.open(tmp_path / "map_color.png"))[np.asarray(Image.open(path)) == 2]
        assert (painted == [1, 2, 3, 255]).all()
    recolor_map(path, json.dumps([{"name": "high", "color": PALETTE[2]}]))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_is_no_map_or_has_no_such_class_keeps_its_colours(tmp_path):
    path = predict(tmp_path, "map.tif")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"dsm\.tif is no map that `sgma-hf predict` wrote"):
        recolor_map(tmp_path / "dsm.tif", '[{"name": "high", "color": "#010203"}]')
    with pytest.raises(ValueError, match="`--classes` has 'hihg'; did you mean high"):
        recolor_map(path, '[{"name": "hihg", "color": "#010203"}]')
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
