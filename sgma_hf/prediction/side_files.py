"""What lies beside a map so that a GIS shows it: names and colours of its values, a style, its place, a legend."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

from ..rasters.grids import Grid
from ..visualization.palette import SHARE_RAMP
from .strips import Layer


# Columns of a raster attribute table: name, and GDAL's numbers of type (0 whole, 2 text) and of use.
_COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9))
_STYLES = (".qml", ".sld")
_STYLE_MARK = "sgma-hf"  # in the styles that are written here
_ROW, _FONT_SIZE = 24, 14  # of a legend, in pixels


def side_files(path: Path) -> list[Path]:
    """GDAL's file of what a raster's own has no place for, the styles of QGIS and of OGC, of a PNG the world file."""
    suffixes = (".qml", ".sld", *([".pgw"] if path.suffix.lower() == ".png" else []))
    return [path.with_name(f"{path.name}.aux.xml"), *map(path.with_suffix, suffixes)]


def side_texts(layer: Layer | None, path: Path, grid: Grid) -> dict[Path, str]:
    """The files to write beside a raster, and what is in them. `layer` is None if it needs no style."""
    auxiliary, qgis_style, ogc_style, *world = side_files(path)
    place = grid.georeference if world else None  # a GeoTIFF says itself where it lies
    texts = {}
    named = layer if layer is not None and layer.palette else None
    if named is not None or place is not None:
        texts[auxiliary] = _auxiliary(named, place and grid)
    if layer is not None:
        texts[qgis_style], texts[ogc_style] = _qgis_style(layer), _ogc_style(layer, path.stem)
    if place is not None:
        a, b, c, d, e, f = tuple(place.affine)[:6]
        numbers = (a, d, b, e, c + (a + b) / 2, f + (d + e) / 2)  # the place of a pixel is its middle
        texts[world[0]] = "".join(f"{number!r}\n" for number in map(float, numbers))
    return texts


def is_drawn_by_hand(path: Path) -> bool:
    """Whether this is a style that somebody drew: not to be replaced."""
    return path.suffix in _STYLES and path.exists() and _STYLE_MARK not in path.read_text("utf-8", errors="replace")


def draw_legend(names: Sequence[str], colors: Sequence[Sequence[int]]) -> Image.Image:
    """A picture of colours and what they mean, dark on white."""
    font = ImageFont.load_default(_FONT_SIZE)
    width = max((font.getlength(name) for name in names), default=0)
    legend = Image.new("RGB", (round(width) + 3 * _ROW, _ROW * max(1, len(names)) + 8), "white")
    draw = ImageDraw.Draw(legend)
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        top = 4 + index * _ROW
        draw.rectangle((8, top + 4, 8 + 1.5 * _ROW, top + _ROW - 5), fill=tuple(color), outline=(90, 90, 90))
        draw.text((16 + 1.5 * _ROW, top + _ROW / 2), name, fill=(30, 30, 30), font=font, anchor="lm")
    return legend


def _auxiliary(layer: Layer | None, grid: Grid | None) -> str:
    """Category names and a raster attribute table as GDAL's PAM has them, and where the raster lies."""
    root = ElementTree.Element("PAMDataset")
    if grid is not None:
        if grid.georeference.crs is not None:
            _add(root, "SRS", grid.georeference.crs)
        a, b, c, d, e, f = tuple(grid.georeference.affine)[:6]
        _add(root, "GeoTransform", ", ".join(repr(float(number)) for number in (c, a, b, f, d, e)))
    if layer is not None:
        band = _add(root, "PAMRasterBand", band="1")
        categories = _add(band, "CategoryNames")
        table = _add(band, "GDALRasterAttributeTable", tableType="thematic")
        for index, (name, kind, use) in enumerate(_COLUMNS):
            column = _add(table, "FieldDefn", index=index)
            for key, value in (("Name", name), ("Type", kind), ("Usage", use)):
                _add(column, key, value)
        for value, name, color in _entries(layer):
            _add(categories, "Category", name)
            row = _add(table, "Row", index=value)
            for cell in (value, name, *color, 255):
                _add(row, "F", cell)
    return _text(root)


def _qgis_style(layer: Layer) -> str:
    """The colours of the values and what they mean, or of shares those of the first band, as QGIS keeps a style."""
    root = ElementTree.Element("qgis", {"styleCategories": "Symbology", "version": "3.22"})
    root.append(ElementTree.Comment(f" by {_STYLE_MARK} "))
    options = {"band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    pipe = _add(root, "pipe")
    if layer.palette:
        palette = _add(_add(pipe, "rasterrenderer", type="paletted", **options), "colorPalette")
        for value, name, color in _entries(layer):
            _add(palette, "paletteEntry", value=value, color=f"#{bytes(color).hex()}", alpha=255, label=name)
    else:
        options |= {"classificationMin": "0", "classificationMax": "1"}
        shader = _add(_add(pipe, "rasterrenderer", type="singlebandpseudocolor", **options), "rastershader")
        ramp = _add(shader, "colorrampshader", colorRampType="INTERPOLATED", minimumValue=0, maximumValue=1)
        for value, name, color in _entries(layer):
            _add(ramp, "item", value=value, color=f"#{bytes(color).hex()}", alpha=255, label=name)
    return _text(root, "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n")


def _ogc_style(layer: Layer, name: str) -> str:
    """The same as a Styled Layer Descriptor 1.0.0, which GeoServer and others take."""
    root = ElementTree.Element("StyledLayerDescriptor", {"xmlns": "http://www.opengis.net/sld", "version": "1.0.0"})
    root.append(ElementTree.Comment(f" by {_STYLE_MARK} "))
    named = _add(root, "NamedLayer")
    _add(named, "Name", name)
    rule = _add(_add(_add(named, "UserStyle"), "FeatureTypeStyle"), "Rule")
    symbolizer = _add(rule, "RasterSymbolizer")
    _add(_add(_add(symbolizer, "ChannelSelection"), "GrayChannel"), "SourceChannelName", 1)
    colors = _add(symbolizer, "ColorMap", type="values" if layer.palette else "ramp")
    for value, label, color in _entries(layer):
        _add(colors, "ColorMapEntry", color=f"#{bytes(color).hex()}", quantity=value, label=label, opacity="1")
    return _text(root, '<?xml version="1.0" encoding="UTF-8"?>\n')


def _entries(layer: Layer) -> list[tuple[float, str, tuple[int, ...]]]:
    """Value, name and colour; of shares those between which colours are blended."""
    if not layer.palette:
        steps = len(SHARE_RAMP) - 1
        return [(index / steps, f"{index / steps:.0%}", color) for index, color in enumerate(SHARE_RAMP)]
    # Control characters are no part of XML.
    names = [re.sub(r"[\x00-\x1f]", " ", name) for name in layer.tags.values()]
    return list(zip(range(len(names)), names, layer.palette, strict=True))


def _add(parent: ElementTree.Element, tag: str, text: object = None, **attributes: object) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag, {key: str(value) for key, value in attributes.items()})
    child.text = None if text is None else str(text)
    return child


def _text(root: ElementTree.Element, head: str = "") -> str:
    ElementTree.indent(root)
    return head + ElementTree.tostring(root, encoding="unicode") + "\n"
