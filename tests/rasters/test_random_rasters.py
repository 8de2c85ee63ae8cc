"""500 random rasters: types, bands, gaps, masks and grids, read by every way there is, against GDAL and float64."""

import numpy as np
import pytest
from raster_scenes import UTM, write_tiff

from sgma_hf import SgmaImageProcessor
from sgma_hf.converters.folders.modality_plan import NodataOption
from sgma_hf.converters.raster_folders import ConversionOptions, convert_rasters
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.rasters.bands import ALL_BANDS, BandSelection
from sgma_hf.rasters.extents import read_on_extent
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.raster import Georeference
from sgma_hf.rasters.scene import RasterScene


rasterio = pytest.importorskip("rasterio")
random_rasters = pytest.importorskip("random_rasters")

EXACT_GRIDS = ("same", "cropped")
AT_ONCE = 10  # rasters of one scene, each a modality
NUM_FAST, NUM_RASTERS = 50, 500


def differences(raster, way, values, valid, expected, *, slack):
    """What is wrong with values (height, width, channels) and where they are there; empty if nothing is."""
    right, there, certain = expected
    found = []
    if wrong := int(((valid != there) & certain).sum()):
        found.append(f"{way}: missing in {(~valid).sum()} pixels instead of {(~there).sum()}, {wrong} are wrong")
    both = valid & there & certain
    off = np.abs(np.moveaxis(values, -1, 0)[:, both] - right[:, both]).max(initial=0)
    if not off <= slack:
        found.append(f"{way}: off by {off:.4g}, {slack:.4g} at most")
    return [f"{line}; {raster.about}" for line in found]


def beyond_limits(raster, way, values, *, slack):
    """The same where a pixel is a mean: no number beyond those that are measured."""
    lowest, highest = raster.limits
    is_within = values.size == 0 or (lowest - slack <= values.min() and values.max() <= highest + slack)
    return [] if is_within else [f"{way}: {values.min()} to {values.max()} of {raster.limits}; {raster.about}"]


def tolerance(raster):
    """A thousandth of a pixel in another CRS, four times as much at the rim of a gap; a half where it is rounded."""
    if raster.grid in EXACT_GRIDS:
        return float32_error(raster)
    share = 0.01 if raster.grid in ("zone", "degrees") else 1e-5
    return share * np.ptp(raster.limits) + (0.5001 if raster.is_integer else 0)


def float32_error(raster):
    return 1e-6 * np.abs(raster.limits).max()


def wrong_in_scene(raster, folder):
    """On its own grid, on the map's, and as the converter reads it."""
    bands = BandSelection(raster.bands) if raster.bands else ALL_BANDS
    whole = read_raster(raster.path, nodata=raster.nodata, bands=bands)
    own = raster.values, raster.valid, np.ones_like(raster.valid)
    found = differences(raster, "as it is", whole.values, whole.valid, own, slack=float32_error(raster))
    options = {"channels": {"x": raster.channels}, "nodata": {"x": raster.nodata}, "like": folder / "map.tif"}
    with RasterScene({"x": raster.text}, **options) as scene:
        image = scene.read(0, 0, *scene.grid.size).get("x")
    image = np.ma.masked_all((*random_rasters.SIZE, raster.channels)) if image is None else image
    valid = ~image.mask.any(-1)
    expected = random_rasters.on_map(raster)
    found += differences(raster, "on the map", image.data, valid, expected, slack=tolerance(raster))
    place = Georeference(random_rasters.GRID, rasterio.crs.CRS.from_string(UTM).to_wkt())
    trained = read_on_extent(read_info(raster.path, bands=bands), place, random_rasters.SIZE, nodata=raster.nodata)
    same = trained.size != random_rasters.SIZE or (
        (trained.valid == valid).all() and (trained.values[valid] == image.data[valid]).all()
    )
    return found if same else [*found, f"convert-rasters and predict differ; {raster.about}"]


def wrong_in_rows(rasters, folder):
    """What the image processor sees of rows that the converter wrote, and their statistics."""
    names = [f"m{index}" for index in range(len(rasters))]
    options = ConversionOptions(nodata={}, absent={})
    for name, raster in zip(names, rasters, strict=True):
        (folder / "scenes" / name).mkdir(parents=True)
        suffix = raster.path.rpartition(".")[2]
        (folder / "scenes" / name / f"a.{suffix}").symlink_to(raster.path)
        if (folder / f"{raster.path}.msk").exists():
            (folder / "scenes" / name / f"a.{suffix}.msk").symlink_to(f"{raster.path}.msk")
        options.nodata[name] = NodataOption(tuple(raster.nodata))
    (folder / "scenes" / "label").mkdir()
    (folder / "scenes" / "label" / "a.tif").symlink_to(folder / "map.tif")
    picked = [f"{name}{raster.text[len(raster.path) :]}" for name, raster in zip(names, rasters, strict=True)]
    convert_rasters(folder / "scenes", folder / "rows", picked, options=options)
    metadata = DatasetMetadata.load(folder / "rows")
    images, _ = decode_row(load_rows(folder / "rows", "train")[0], names)
    found = []
    for index, (name, raster) in enumerate(zip(names, rasters, strict=True)):
        right, there, certain = random_rasters.on_map(raster)
        if images[name] is None:
            found += [f"no row; {raster.about}"] if (there & certain).any() else []
            continue
        values, valid = as_the_model_sees_it(images[name], raster.channels, metadata.nodata[index])
        # What is interpolated to the number that fills the gaps is moved by one.
        is_moved = raster.is_integer and raster.grid not in EXACT_GRIDS
        slack = tolerance(raster) + is_moved + float32_error(raster)
        if valid.shape == there.shape:
            found += differences(raster, "in the rows", values, valid, (right, there, certain), slack=slack)
        else:
            found += beyond_limits(raster, "in the rows", values[valid], slack=slack)
        mean = metadata.statistics["modalities"][index]["mean"]
        if not np.allclose(mean, values[valid].mean(0, dtype=np.float64), rtol=1e-4, atol=1e-4):
            found.append(f"statistics: mean {mean}; {raster.about}")
    return found


def as_the_model_sees_it(image, channels, nodata):
    """Values (height, width, channels) and where the processor lets them count."""
    plain = {"rescale_factor": [1.0], "image_mean": [[0.0] * channels], "image_std": [[1e6] * channels]}
    processor = SgmaImageProcessor(["x"], [channels], **plain, nodata=[nodata], reference_level="none")
    batch = processor({"x": image})
    valid = batch["modality_mask"][0, 0].expand(image.shape[:2]).numpy()
    return np.moveaxis(batch["pixel_values"][0].double().numpy() * 1e6, 0, -1), valid


@pytest.mark.filterwarnings("ignore:.*shadowing the alpha band")
@pytest.mark.parametrize(
    "first",
    [pytest.param(first, marks=[pytest.mark.long] * (first >= NUM_FAST)) for first in range(0, NUM_RASTERS, AT_ONCE)],
)
def test_what_gdal_says_is_missing_is_missing_and_all_else_keeps_its_value(tmp_path, first):
    label = (np.indices(random_rasters.SIZE)[:1] // 20).astype(np.uint8)
    write_tiff(tmp_path / "map.tif", label, transform=random_rasters.GRID)
    rasters = [random_rasters.draw(seed, tmp_path) for seed in range(first, first + AT_ONCE)]
    found = [line for raster in rasters for line in wrong_in_scene(raster, tmp_path)]
    found += wrong_in_rows(rasters, tmp_path)
    assert not found, "\n".join(found)
