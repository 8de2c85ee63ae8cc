"""500 random rasters: types, bands, nodata per band, masks, alpha and grids, against numpy and GDAL's own masks."""

import numpy as np
import pytest
from raster_scenes import UTM, write_tiff

from sgma_hf.converters.folders.modality_plan import NodataOption, plan_modality
from sgma_hf.model.image_transforms_sgma import valid_pixels
from sgma_hf.rasters.extents import read_on_extent
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.raster import Georeference
from sgma_hf.rasters.scene import RasterScene


rasterio = pytest.importorskip("rasterio")
Affine = rasterio.Affine
HEIGHT, WIDTH = 14, 18
PLACE = Affine(1, 0, 500000, 0, -1, 4800000)
PROFILE = {"transform": PLACE, "photometric": "minisblack"}  # or the last of four bands would be alpha
GDAL_TYPES = {
    **{f"{sign}int{bits}": f"{sign.upper()}Int{bits}" for sign in ("u", "") for bits in (16, 32, 64)},
    **{"uint8": "Byte", "float32": "Float32", "float64": "Float64"},
}


class Made:
    """A random file, its stored values (bands, height, width), and which pixels hold data."""

    def __init__(self, folder, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.dtype = str(rng.choice(list(GDAL_TYPES)))
        self.is_float = self.dtype.startswith("float")
        self.values = rng.integers(0, 4, (rng.integers(1, 5), HEIGHT, WIDTH)) * 25
        self.values = self.values.astype(self.dtype) + (np.array(0.5, self.dtype) if rng.random() < 0.3 else 0)
        self.values = self.values.astype(self.dtype)
        kind = rng.choice(["virtual", "mask", "alpha"])
        self.nodata = self._choose_nodata()
        if kind != "virtual":  # a GeoTIFF has one value for all bands; rasterio writes none of 64 bits
            self.nodata = [None if self.bits == 64 else self.nodata[0]] * len(self.values)
        self._sprinkle()
        self.valid = self._expected()
        self.path = folder / f"{seed}.tif"
        if kind == "virtual":
            write_tiff(self.path, self.values, **PROFILE)
            self._declare(folder / f"{seed}.vrt")
            return
        mask = np.where(rng.random((HEIGHT, WIDTH)) < 0.2, 0, 255).astype(np.uint8)
        self.valid &= mask > 0
        options = {**PROFILE, "nodata": self.nodata[0]}
        if kind == "mask" or self.dtype != "uint8":
            write_tiff(self.path, self.values, mask=mask, **options)
        else:
            write_tiff(self.path, np.concatenate([self.values, mask[None]]), **options)
            with rasterio.open(self.path, "r+") as file:
                file.colorinterp = [*file.colorinterp[:-1], rasterio.enums.ColorInterp.alpha]

    @property
    def bits(self):
        return np.dtype(self.dtype).itemsize * 8

    def _choose_nodata(self):
        if self.is_float:
            numbers = [None, 0.0, -9999.0, 25.0, 1e20, float("nan"), float(np.finfo(np.float32).min)]
        else:
            limits = np.iinfo(self.dtype)
            numbers = [None, 0, 25, int(limits.max), int(limits.min), int(limits.max) - 1]
        return [numbers[self.rng.integers(len(numbers))] for _ in self.values]

    def _sprinkle(self):
        """Nodata in its own band, and in another one where the row format holds it; what is no number in floats."""
        for band, values in enumerate(self.values):
            others = [n for n in self.nodata if n is not None and (self.is_float or abs(n) < 2**31)]
            for number in [self.nodata[band], *others]:
                if number is not None:
                    values[self.rng.random(values.shape) < 0.06] = number
            if self.is_float and self.rng.random() < 0.5:
                for number in (np.nan, np.inf, -np.inf, 3.4028235e38):
                    values[self.rng.random(values.shape) < 0.01] = number

    def _expected(self):
        missing = np.zeros(self.values.shape, bool)
        for band, (values, number) in enumerate(zip(self.values, self.nodata, strict=True)):
            if self.is_float:
                missing[band] = ~(np.abs(values) < 3.4e38)
            if number == 0 and not self.is_float:
                missing[band] = (self.values == 0).all(0)
            elif number is not None:
                missing[band] |= values == np.array(number, self.dtype)
        return ~missing.any(0)

    def _declare(self, path):
        """A VRT with a nodata value for each band; GDAL's own masks agree where 0 needs not all bands."""
        kind, bands = GDAL_TYPES[self.dtype], ""
        for number, value in enumerate(self.nodata, start=1):
            declared = "" if value is None else f"<NoDataValue>{value!r}</NoDataValue>"
            source = f"<SourceFilename relativeToVRT='1'>{self.path.name}</SourceFilename>"
            bands += (
                f"<VRTRasterBand dataType='{kind}' band='{number}'>{declared}<SimpleSource>{source}"
                f"<SourceBand>{number}</SourceBand></SimpleSource></VRTRasterBand>"
            )
        place = "<GeoTransform>500000, 1, 0, 4800000, 0, -1</GeoTransform>"
        path.write_text(
            f"<VRTDataset rasterXSize='{WIDTH}' rasterYSize='{HEIGHT}'><SRS>{UTM}</SRS>{place}{bands}</VRTDataset>"
        )
        self.path = path
        with rasterio.open(path) as file:
            masks = file.read_masks() > 0
        finite = np.abs(self.values) < 3.4e38 if self.is_float else np.ones(self.values.shape, bool)
        if self.is_float or 0 not in self.nodata:
            np.testing.assert_array_equal((masks & finite).all(0), self.valid)


def weighted_bilinear(values, valid, rows, columns):
    """Bilinear in float64 from the valid pixels, normalised, at places (pixel 0 spans 0..1) inside; NaN elsewhere."""
    down, right = (
        np.maximum(0, 1 - np.abs(places[:, None] - 0.5 - np.arange(side)))
        for places, side in ((rows, HEIGHT), (columns, WIDTH))
    )
    held = np.where(valid, values, 0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (down @ held @ right.T) / (down @ valid.astype(np.float64) @ right.T)


@pytest.mark.parametrize("first", range(0, 500, 50))
def test_random_rasters_are_read_right_on_any_grid(tmp_path, first):
    for seed in range(first, first + 50):
        made = Made(tmp_path, seed)
        name = f"seed {seed}: {made.dtype}, nodata {made.nodata}"
        info = read_info(made.path)
        raster = read_raster(made.path)
        np.testing.assert_array_equal(raster.valid, made.valid, name)
        held = np.moveaxis(made.values, 0, -1)[made.valid]
        np.testing.assert_array_equal(raster.values[made.valid], held.astype(raster.values.dtype), name)
        place = Georeference(PLACE, rasterio.crs.CRS.from_string(UTM).to_wkt())
        stored_as_it_is(made, info, place, name)
        shifted_by_parts_of_a_pixel(made, info, place, tmp_path, name)


def stored_as_it_is(made, info, place, name):
    """The converter's rows say by their flat list of values what the file says by band."""
    plan = plan_modality("x", [(info, place, (HEIGHT, WIDTH))], NodataOption())
    raster = read_on_extent(info, place, (HEIGHT, WIDTH))
    stored = plan.store(raster, made.path)
    if not made.valid.any():
        assert stored is None, name
        return
    np.testing.assert_array_equal(valid_pixels(stored, plan.nodata), made.valid, name)
    np.testing.assert_array_equal(stored[made.valid], raster.values[made.valid], name)


def shifted_by_parts_of_a_pixel(made, info, place, folder, name):
    """Nothing missing is blended, holes are where the nearest pixel is one, in training and in prediction."""
    down, right = made.rng.choice([0.3, 0.45, 0.7], 2)
    grid, size = PLACE @ Affine.translation(1 + right, 2 + down), (HEIGHT - 4, WIDTH - 4)
    like = write_tiff(folder / "grid.tif", np.zeros((1, *size), np.uint8), transform=grid)
    channels = info.channels
    with RasterScene({"x": str(made.path)}, channels={"x": channels}, like=like) as scene:
        image = scene.read(0, 0, *size).get("x")
    trained = read_on_extent(info, Georeference(grid, place.crs), size)
    rows, columns = np.arange(size[0]) + 2.5 + down, np.arange(size[1]) + 1.5 + right
    expected_valid = made.valid[np.ix_(np.floor(rows).astype(int), np.floor(columns).astype(int))]
    np.testing.assert_array_equal(trained.valid, expected_valid, name)
    if image is None:
        assert not expected_valid.any(), name
        return
    np.testing.assert_array_equal(~image.mask[..., 0], expected_valid, name)
    np.testing.assert_array_equal(image.data[expected_valid], trained.values[expected_valid], name)
    right_values = np.moveaxis(weighted_bilinear(made.values, made.valid, rows, columns), 0, -1)[expected_valid]
    step = 0.501 if info.dtype != "float32" else 0
    np.testing.assert_allclose(
        trained.values[expected_valid].astype(float), right_values, rtol=1e-4, atol=step + 1e-3, err_msg=name
    )
