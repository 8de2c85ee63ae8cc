"""Rows of rasters that are missing in places: what stands there, what is moved, and which band is to blame."""

import numpy as np
from converted_rows import decoded
from PIL import Image
from raster_scenes import write_tiff

from sgma_hf.converters.folders.modality_plan import ModalityPlan, NodataOption
from sgma_hf.converters.raster_folders import main
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.rasters.raster import Raster


def tiff(path, values, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiff(path, values, **profile)


def run(source, out, *arguments):
    return main(["--source", str(source), "--output", str(out), *arguments])


def test_bands_that_declare_different_values_are_stored_with_nan_or_the_lowest_number(tmp_path):
    """So that -9999 in the second band stays a value: the rows' flat list knows no bands."""
    for dtype in ("int16", "int32"):
        source = tmp_path / dtype
        values = np.array([[[-9999, 5, 6, 7]], [[1, -9999, -32768, 2]]], dtype)
        for band, nodata in enumerate((-9999, -32768)):
            tiff(source / "one" / f"{band}.tif", values[band][None], nodata=nodata)
        names = [str(source / "one" / f"{band}.tif") for band in (0, 1)]
        bands = "".join(
            f'<VRTRasterBand dataType="{dtype.title()}" band="{band + 1}"><NoDataValue>{nodata}</NoDataValue>'
            f"<SimpleSource><SourceFilename>{names[band]}</SourceFilename></SimpleSource></VRTRasterBand>"
            for band, nodata in enumerate((-9999, -32768))
        )
        (source / "sar").mkdir()
        (source / "sar" / "a.vrt").write_text(f'<VRTDataset rasterXSize="4" rasterYSize="1">{bands}</VRTDataset>')
        (source / "label").mkdir()
        Image.fromarray(np.zeros((1, 4), dtype=np.uint8)).save(source / "label" / "a.png")
        assert run(source, tmp_path / f"{dtype}_out", "--modalities", "sar") == 0
        metadata = DatasetMetadata.load(tmp_path / f"{dtype}_out")
        images, _ = decoded(tmp_path / f"{dtype}_out", "train")["a"]
        fill, stored = (np.nan, "float32") if dtype == "int16" else (-(2**31), "int32")
        assert (metadata.modality_dtypes, metadata.nodata) == ([stored], [[fill]] if dtype == "int32" else [[]])
        expected = np.array([[[fill, fill], [5, -9999], [fill, fill], [7, 2]]], stored)
        np.testing.assert_array_equal(images["sar"], expected)


def test_a_value_of_no_data_that_interpolation_hits_is_moved_to_the_next_one_that_is_free(tmp_path):
    option = NodataOption((255.0, 254.0, 0.0))
    plan = ModalityPlan("x", 2, "uint8", option.values, fill=255.0, option=option)
    values = np.array([[[255, 7], [254, 0], [0, 0], [0, 9]]], np.uint8)
    stored = plan.store(Raster(values, np.array([[True, True, True, False]])), tmp_path)
    assert stored.tolist() == [[[253, 7], [253, 0], [1, 1], [255, 255]]]


def test_a_band_that_is_missing_in_more_than_half_is_named_with_the_flag_that_drops_it(tmp_path, capsys):
    source = tmp_path / "in"
    for name, width in (("a", 6), ("b", 1)):
        values = np.full((2, 4, 6), -12.5, dtype=np.float32)
        values[1, :, :width] = -9999
        tiff(source / "s1" / f"{name}.tif", values, nodata=-9999)
        tiff(source / "label" / f"{name}.tif", np.zeros((1, 4, 6), np.uint8))
    assert run(source, tmp_path / "out", "--modalities", "sar=s1") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "one of its bands" in line]
    assert line.endswith("2 (58%); `--modalities sar=s1:1` leaves it out.")
    assert run(source, tmp_path / "one", "--modalities", "sar=s1:1") == 0
    assert "one of its bands" not in capsys.readouterr().out
    assert DatasetMetadata.load(tmp_path / "one").statistics["modalities"][0]["nodata_share"] == 0


def test_a_dead_band_that_leaves_nothing_is_named_and_nothing_is_written(tmp_path, capsys):
    values = np.full((2, 4, 6), 7, dtype=np.int16)
    values[1] = -1
    tiff(tmp_path / "in" / "sar" / "a.tif", values, nodata=-1)
    tiff(tmp_path / "in" / "label" / "a.tif", np.zeros((1, 4, 6), np.uint8))
    assert run(tmp_path / "in", tmp_path / "out", "--modalities", "sar") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds data in any modality." in error and "2 (100%); `--modalities sar:1` leaves it out." in error
    assert not (tmp_path / "out").exists()
