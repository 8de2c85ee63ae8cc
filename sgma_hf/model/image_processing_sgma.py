"""Image processor of SGMA: named rasters, some of them missing, in; one packed tensor and its mask out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_transforms_sgma import (
    REFERENCE_LEVELS,
    Moments,
    Raster,
    ValueSample,
    find_covered,
    interpolation_weights,
    measure_level,
    pick_nearest,
    read_label,
    read_raster,
    resample,
    same_extent,
    subtract,
)
from .limits_sgma import IGNORE_INDEX, MAX_IMAGE_SIDE, check_modalities, check_num_labels
from .modalities_sgma import SgmaProcessorModalitiesMixin
from .normalization_sgma import (
    RANGE_SHARES,
    band_numbers,
    fitted_statistics,
    nodata_values,
    per_modality,
    value_ranges,
)
from .post_processing_sgma import SgmaPostProcessingMixin
from .saving_sgma import SgmaPushToHubMixin


# What `transformers` itself writes to `preprocessor_config.json` or passes on while loading.
SERVICE_KEYS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}


@dataclass
class _Row:
    """One decoded sample: its rasters by modality, its label, the grid, the window of it, and the output size."""

    rasters: list[Raster | None]
    label: np.ndarray | None
    grid: tuple[int, int]
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    levels: Mapping[str, float | np.ndarray]
    coverage: list[np.ndarray | bool] = field(default_factory=list)


class SgmaImageProcessorKwargs(TypedDict, total=False):
    """Fields of [`SgmaImageProcessor`] that `from_pretrained` may override."""

    modalities: list[str]
    modality_channels: list[int]
    rescale_factor: list[float]
    image_mean: list[list[float]]
    image_std: list[list[float]]
    nodata: list[list[float]]
    reference_level: list[str]
    value_range: list[list[list[float]] | None]
    reference_window: int | None
    resolution: float | None
    do_resize: bool
    size: dict[str, int]
    num_labels: int | None


def _check_window(window: Sequence[int] | None, grid: tuple[int, int], *, index: int) -> tuple[int, int, int, int]:
    """Check a window (top, left, height, width) in pixels of the grid; None is all of it."""
    if window is None:
        return 0, 0, *grid
    if len(window) != 4:
        raise ValueError(f"`windows[{index}]` is {window!r}; expected (top, left, height, width) in pixels.")
    top, left, height, width = (int(number) for number in window)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > grid[0] or left + width > grid[1]:
        raise ValueError(
            f"`windows[{index}]` is (top, left, height, width) = {(top, left, height, width)}, which does not lie in "
            f"the {grid[0]} x {grid[1]} pixels of the row. Shrink or move it; smaller rows are padded in the batch."
        )
    return top, left, height, width


def _as_list(value: Any, count: int, *, is_single: bool, name: str) -> list:
    """Bring an optional per-row argument to a list with one entry per row."""
    if value is None:
        return [None] * count
    if not is_single and not isinstance(value, list | tuple | np.ndarray | torch.Tensor):
        raise TypeError(f"`{name}` is a {type(value).__name__}; expected a list with one entry per row of `images`.")
    rows = [value] if is_single else list(value)
    if len(rows) != count:
        raise ValueError(f"`{name}` has {len(rows)} entries and `images` has {count}; give one per row.")
    return rows


def _check_size(size: Any) -> dict[str, int]:
    """Bring an output size to {"height", "width"} in pixels."""
    if isinstance(size, int):
        size = {"height": size, "width": size}
    elif isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if (
        not isinstance(size, Mapping)
        or set(size) != {"height", "width"}
        or not all(isinstance(side, int) and 0 < side <= MAX_IMAGE_SIDE for side in size.values())
    ):
        raise ValueError(
            f"`size` is {size!r}; expected {{'height': ..., 'width': ...}}, both 1 to {MAX_IMAGE_SIDE} pixels."
        )
    return {"height": size["height"], "width": size["width"]}


class SgmaImageProcessor(
    SgmaProcessorModalitiesMixin, SgmaPostProcessingMixin, SgmaPushToHubMixin, BaseImageProcessor
):
    r"""Turns samples with named, possibly missing rasters into the packed input of SGMA.

    Every sample is a dict `{"rgb": raster, "dsm": None, ...}`, as rows of data sets are: `id`, `label` and `preview`
    are passed over. A raster is an array (masked or not), a torch tensor, a PIL image, the path or the bytes of a
    `.npy` file or one that PIL reads, or an undecoded cell of `datasets`; bool, integers or floating point; (height,
    width) for one band, else channels first or last, told by the modality's channel count. Where both ends fit, they
    are first in a tensor and last in an array, unless `input_data_format` says otherwise. None is a missing modality.

    **Missing values.** NaN, infinities, magnitudes from 3.4e38 on and the modality's `nodata` values, in any band,
    become False in the mask, never numbers; so do transparent pixels (an alpha channel beyond the modality's own, a
    transparent colour) and masked ones. Of integers, a nodata value of 0 counts only where all bands are 0. A modality
    without a single covered pixel is a missing one.

    **Grid.** The rasters of a sample span the same ground and may have different resolutions. The label's grid counts
    if there is one, else that of the largest raster. Other rasters are brought to it: linear interpolation where they
    are coarser, area averages where they are finer, always of the covered pixels alone. A pixel is covered if the
    coarser pixel around its centre is, or at least half of the finer ones in it. Labels are only ever picked by
    nearest neighbour. Sizes whose proportions differ by more than a cell of the coarser grid are refused.

    **Normalisation**, per modality: `((raster - level) * rescale_factor - image_mean) / image_std`. `level` is that of
    the window's own pixels (source pixels, before resampling; one level for all bands), so that heights in metres
    above sea level are comparable between places.

    Without statistics of your own, a modality gets defaults by its name, or by the first part of it at underscores
    that is known (`dsm_2019` is a `dsm`):

    | names | unit of the values | `rescale_factor` | mean, std (rescaled) | `reference_level` | `nodata` |
    |---|---|---|---|---|---|
    | `rgb` | 0 to 255 | 1/255 | those of ImageNet | none | none |
    | `dsm`, `dem`, `dtm`, `elevation` | metres above a datum | 1 | 5 m, 10 m | minimum | -9999, -32768 |
    | `ndsm`, `chm`, `height` | metres above ground | 1 | 5 m, 10 m | none | -9999, -32768 |
    | `sar`, `s1`, `vv`, `vh` | backscatter in dB | 1 | -15 dB, 5 dB | none | -9999 |
    | `s2`, `msi`, `multispectral`, `hsi`, `hyperspectral` | reflectance times 10,000 | 1e-4 | 0.2, 0.1 | none | none |
    | any other | 0 to 255 | 1/255 | 0.45, 0.225 | none | none |

    [`SgmaImageProcessor.fit`] replaces mean and standard deviation by those of your data, and notes their range.

    Args:
        modalities: Names, in the order of the channels of `pixel_values`. Defaults to rgb, dsm, nir.
        modality_channels: Number of bands of each modality.
        rescale_factor: Factor per modality, or one for all; applied before mean and standard deviation.
        image_mean: Mean per modality, in rescaled units: a list with a number per band, or one number for all bands.
        image_std: Standard deviation per modality, likewise; greater than 0.
        nodata: List of nodata values per modality, in the unit of the raw raster. NaN need not be listed.
        reference_level: Per modality, or one for all: "none", "minimum", "robust_minimum" (the 2nd percentile, which
            a few pits in a surface model do not move) or "median".
        value_range: Per modality [lowest, highest] of each band, in rescaled units, or None: where 1 % and 99.9 % of
            the values that were trained on lie below. Nothing is computed with it; by it, a raster in another unit or
            bit depth is told.
        reference_window: Side in pixels of the windows that were trained on, whose own levels were subtracted there.
            In a map the level of a place is that of such a window around it, whatever the tile. None: the tile's own.
        resolution: Metres on the ground that a pixel was in training, None if unknown.
        do_resize: Whether to bring every sample (or its window) to `size`.
        size: {"height", "width"} of the output in pixels, or one number for both. Used if `do_resize`.
        num_labels: Number of classes; label ids from there on are refused. None: all ids up to 254 pass.

    Raises:
        ValueError: If the lists do not fit each other, or a number cannot be used.

    Example:
    ```python
    >>> import numpy as np
    >>> from sgma_hf import SgmaImageProcessor

    >>> processor = SgmaImageProcessor(modalities=["rgb", "dsm"], modality_channels=[3, 1])
    >>> inputs = processor({"rgb": np.zeros((64, 64, 3), np.uint8), "dsm": None})
    >>> inputs["pixel_values"].shape, inputs["modality_mask"]
    (torch.Size([1, 4, 64, 64]), tensor([[ True, False]]))
    ```
    """

    model_input_names = ["pixel_values", "modality_mask"]  # noqa: RUF012 - the name and form transformers expects
    valid_kwargs = SgmaImageProcessorKwargs

    def __init__(
        self,
        modalities: Sequence[str] = ("rgb", "dsm", "nir"),
        modality_channels: Sequence[int] | None = None,
        *,
        rescale_factor: float | Sequence[float] | None = None,
        image_mean: Sequence[float | Sequence[float]] | None = None,
        image_std: Sequence[float | Sequence[float]] | None = None,
        nodata: Sequence[Sequence[float]] | None = None,
        reference_level: str | Sequence[str] | None = None,
        value_range: Sequence[Sequence[Sequence[float]] | None] | None = None,
        reference_window: int | None = None,
        resolution: float | None = None,
        do_resize: bool = False,
        size: Any = None,
        num_labels: int | None = None,
        **kwargs,
    ):
        unknown = sorted(key for key in kwargs if key not in SERVICE_KEYS and not key.startswith("_"))
        if unknown:
            raise ValueError(
                f"SgmaImageProcessor has no fields {unknown}; it knows {sorted(self.valid_kwargs.__annotations__)}. "
                "Correct the spelling, or update the package if the file was written by a newer version."
            )
        super().__init__(**kwargs)
        if isinstance(modalities, str):
            raise ValueError(f"`modalities` is the string {modalities!r}; expected a list of names.")
        if modality_channels is None:
            modality_channels = [3 if name == "rgb" else 1 for name in modalities]
        check_modalities(modalities, modality_channels)
        self.modalities = list(modalities)
        self.modality_channels = list(modality_channels)
        factors = band_numbers("rescale_factor", rescale_factor, modalities, [1] * len(modalities))
        self.rescale_factor = [factor for (factor,) in factors]
        self.image_mean = band_numbers("image_mean", image_mean, modalities, modality_channels)
        self.image_std = band_numbers("image_std", image_std, modalities, modality_channels)
        self.nodata = nodata_values(nodata, modalities)
        self.reference_level = per_modality("reference_level", reference_level, modalities)
        self.value_range = value_ranges(value_range, modalities, modality_channels)
        for field_name, numbers in (("rescale_factor", [self.rescale_factor]), ("image_std", self.image_std)):
            if any(number == 0 or (number < 0 and field_name == "image_std") for row in numbers for number in row):
                raise ValueError(f"`{field_name}` is {numbers}; expected numbers other than 0, positive for a std.")
        for level in self.reference_level:
            if level not in REFERENCE_LEVELS:
                raise ValueError(f"`reference_level` has {level!r}; expected one of {list(REFERENCE_LEVELS)}.")
        if reference_window is not None and not 1 <= reference_window <= MAX_IMAGE_SIDE:
            raise ValueError(
                f"`reference_window` is {reference_window}; expected 1 to {MAX_IMAGE_SIDE} pixels, or None."
            )
        if resolution is not None and not 0 < resolution < float("inf"):
            raise ValueError(f"`resolution` is {resolution}; expected metres per pixel, more than 0, or None.")
        self.reference_window, self.resolution = reference_window, resolution
        if num_labels is not None:
            check_num_labels(num_labels)
        self.do_resize = bool(do_resize)
        self.size = _check_size({"height": 512, "width": 512} if size is None else size)
        self.num_labels = num_labels

    def preprocess(
        self,
        images: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        segmentation_maps: Any = None,
        *,
        windows: Sequence | None = None,
        levels: Any = None,
        do_resize: bool | None = None,
        size: Any = None,
        input_data_format: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: One dict or a list of dicts from modality name to raster or None; see the class.
            segmentation_maps: Class ids per pixel, integers of shape (height, width), 255 for ignored pixels: one per
                row, where None is a row without labels (all ignored). They define the grid of their rows. The
                `label` in a row of `images` is not looked at.
            windows: One (top, left, height, width) per row, in pixels of the row's grid; None is the whole row. Only
                what a window needs is resampled, and the reference level is that of the window.
            levels: One dict per row, or None, of reference levels by modality that are known: a number, or an array
                (height, width) of the raster's size. Others are measured.
            do_resize: Overrides the field.
            size: Overrides the field; a list of several has one for each row.
            input_data_format: "channels_first" or "channels_last", for arrays whose shape leaves both open.
            return_tensors: "pt" for torch tensors, "np" or None for NumPy arrays.

        Returns:
            `pixel_values`: float32 (batch_size, sum of channels, height, width), the modalities in order, about 0 mean
            and unit variance, 0 where missing. Rows that are smaller than others are padded at the bottom and right.
            `modality_mask`: bool, (batch_size, num_modalities) if every modality that is there covers all pixels, else
            (batch_size, num_modalities, height, width). A row whose given modalities hold nothing but nodata is
            False throughout in the latter.
            `labels`: int64 (batch_size, height, width), 255 where ignored or padded; only with `segmentation_maps`.

        Raises:
            ValueError: If a row has no modality at all, a modality's name or number of bands is unknown, sizes do not
                fit each other, a file cannot be read, or label ids are out of range; the row is named.
            TypeError: If something is no raster at all.
        """
        is_single = isinstance(images, Mapping)
        samples = [images] if is_single else images
        if not isinstance(samples, list | tuple) or not all(isinstance(sample, Mapping) for sample in samples):
            raise TypeError(
                f"`images` is a {type(images).__name__}; expected one dict or a list of dicts from modality name to "
                f'raster or None, such as {{"{self.modalities[0]}": array}}.'
            )
        if not samples:
            raise ValueError("`images` is empty; give at least one row.")
        if input_data_format not in (None, "channels_first", "channels_last"):
            raise ValueError(
                f"`input_data_format` is {input_data_format!r}; expected channels_first or channels_last."
            )
        do_resize = self.do_resize if do_resize is None else do_resize
        size = self.size if size is None else size
        sizes = size if isinstance(size, list) and size and not isinstance(size[0], int) else [size] * len(samples)
        sizes = _as_list(sizes, len(samples), is_single=False, name="size")
        targets = [_check_size(each) if do_resize else None for each in sizes]
        with_labels = segmentation_maps is not None
        maps_are_single = is_single and not isinstance(segmentation_maps, list | tuple)
        maps = _as_list(segmentation_maps, len(samples), is_single=maps_are_single, name="segmentation_maps")
        window_is_single = is_single and windows is not None and np.ndim(windows[0]) == 0 and windows[0] is not None
        windows = _as_list(windows, len(samples), is_single=window_is_single, name="windows")
        levels = _as_list(levels, len(samples), is_single=is_single and isinstance(levels, Mapping), name="levels")
        rows = [
            self._read_row(*row, index=index, layout=input_data_format)
            for index, row in enumerate(zip(samples, maps, windows, levels, targets, strict=True))
        ]
        return BatchFeature(data=self._pack(rows, with_labels=with_labels), tensor_type=return_tensors)

    def _read_row(
        self,
        sample: Mapping[str, Any],
        label: Any,
        window: Sequence[int] | None,
        levels: Mapping[str, float | np.ndarray] | None,
        target: dict[str, int] | None,
        *,
        index: int,
        layout: str | None,
    ) -> _Row:
        """Decode one sample and settle its grid, window and output size."""
        for name in sample:
            if name not in (*self.modalities, "id", "label", "scoring_label", "preview"):
                raise ValueError(
                    f"`images[{index}]` has modality {name!r}; this processor knows {self.modalities}. Rename it, "
                    "leave it out, or add it to the processor and the model."
                )
        rasters = [
            None
            if sample.get(name) is None
            else read_raster(sample[name], channels, layout=layout, where=f"`images[{index}][{name!r}]`")
            for name, channels in zip(self.modalities, self.modality_channels, strict=True)
        ]
        given = {name: raster.size for name, raster in zip(self.modalities, rasters, strict=True) if raster}
        if not given:
            raise ValueError(
                f"`images[{index}]` has no modality: none of {self.modalities} is there. Leave the row out, or give "
                "at least one raster."
            )
        label = read_label(label, num_labels=self.num_labels, index=index)
        grid = max(given.values(), key=lambda size: size[0] * size[1]) if label is None else label.shape
        for name, size in given.items():
            if not same_extent(grid, size):
                raise ValueError(
                    f"`images[{index}][{name!r}]` has {size[0]} x {size[1]} pixels, which does not fit the "
                    f"{grid[0]} x {grid[1]} of {'the label' if label is not None else 'the largest modality'}: they "
                    "are to span the same ground with square pixels. Crop them to one extent first."
                )
        top, left, height, width = _check_window(window, grid, index=index)
        size = (height, width) if target is None else (target["height"], target["width"])
        return _Row(rasters, label, grid, (top, left, height, width), size, levels or {})

    def _pack(self, rows: list[_Row], *, with_labels: bool) -> dict[str, np.ndarray]:
        """Normalise and stack the rows, padded to the largest."""
        height, width = (max(row.size[axis] for row in rows) for axis in (0, 1))
        bounds = np.cumsum([0, *self.modality_channels])
        pixel_values = np.zeros((len(rows), int(bounds[-1]), height, width), dtype=np.float32)
        for index, row in enumerate(rows):
            for m, raster in enumerate(row.rasters):
                view = pixel_values[index, bounds[m] : bounds[m + 1], : row.size[0], : row.size[1]]
                row.coverage.append(False if raster is None else self._normalize(raster, row, m, view))
        data = {"pixel_values": pixel_values, "modality_mask": self._mask(rows, (height, width))}
        if with_labels:
            labels = np.full((len(rows), height, width), IGNORE_INDEX, dtype=np.int64)
            for index, row in enumerate(rows):
                if row.label is not None:
                    labels[index, : row.size[0], : row.size[1]] = pick_nearest(row.label, row.window, row.size)
            data["labels"] = labels
        return data

    def _mask(self, rows: list[_Row], size: tuple[int, int]) -> np.ndarray:
        """The modality mask: per row if that says it all, else per pixel."""
        whole = all(isinstance(covered, bool) for row in rows for covered in row.coverage)
        if whole and all(row.size == size and any(row.coverage) for row in rows):
            return np.array([row.coverage for row in rows], dtype=bool)
        mask = np.zeros((len(rows), len(self.modalities), *size), dtype=bool)
        for index, row in enumerate(rows):
            for m, covered in enumerate(row.coverage):
                mask[index, m, : row.size[0], : row.size[1]] = covered
        return mask

    def _normalize(self, raster: Raster, row: _Row, m: int, out: np.ndarray) -> np.ndarray | bool:
        """Write the window of modality m, normalised and on the output grid, over zeros; return what it covers.

        True if all of the window is covered, False if nothing is (`out` stays 0), else bool (height, width).
        """
        top, left, height, width = row.window
        resampling = raster.size != row.grid or row.size != (height, width)
        slices = slice(top, top + height), slice(left, left + width)
        if resampling:
            rows, columns = (
                interpolation_weights(cells, start * cells / whole, length * cells / whole, new)
                for cells, start, length, whole, new in zip(
                    raster.size, row.window[:2], row.window[2:], row.grid, row.size, strict=True
                )
            )
            slices = rows.cells, columns.cells
        source = Raster(raster.values[:, *slices], None if raster.valid is None else raster.valid[slices])
        covered = find_covered(source, self.nodata[m])
        if covered is not None and not covered.any():
            return False
        level = row.levels.get(self.modalities[m])
        if level is None:
            level = measure_level(source.values, covered, self.reference_level[m])
        elif np.ndim(level):
            level = level[slices]
        values = np.empty(source.values.shape, dtype=np.float32) if resampling else out
        mean = np.asarray(self.image_mean[m]) / self.rescale_factor[m]
        subtract(source.values, level, mean, out=values)
        if covered is not None:
            np.copyto(values, 0, where=~covered)
        scale = self.rescale_factor[m] / np.asarray(self.image_std[m])
        values *= scale.astype(np.float32)[:, None, None]
        if resampling:  # last: the target is often far larger, a hundredfold for a hyperspectral sensor beside RGB
            covered = resample(values, covered, rows, columns, out=out)
            if covered is not None:
                np.copyto(out, 0, where=~covered)
                if not covered.any():
                    return False
        return True if covered is None else covered

    @classmethod
    def fit(
        cls,
        rows: Iterable[Mapping[str, Any]],
        modalities: Sequence[str],
        modality_channels: Sequence[int],
        **kwargs,
    ) -> "SgmaImageProcessor":
        """Make a processor whose mean, standard deviation and range are those of a data set, in one streaming pass.

        Nodata is left out, rasters count at their own resolution, and the reference level is that of the whole raster:
        where training crops windows out of much larger rows, give crops of that size, as `sgma-hf train` does. A
        modality that no row has keeps its defaults and a band that never varies gets a standard deviation of 1, each
        with a warning.

        Args:
            rows: Any iterable of dicts from modality name to raster or None. Other columns are not looked at.
            modalities: Names, as for the class.
            modality_channels: Bands of each, as for the class.
            **kwargs: Other fields of the processor: `nodata`, `reference_level`, `rescale_factor`, ... Mean and
                standard deviation are in units of `rescale_factor`.

        Returns:
            The processor.

        Raises:
            ValueError: If there are no rows, no row has a column of a modality's name, or a raster cannot be used.
        """
        computed = {"image_mean", "image_std", "value_range"} & set(kwargs)
        if computed:
            raise ValueError(f"`fit` computes {sorted(computed)}; leave them out, or build the processor directly.")
        processor = cls(modalities, modality_channels, **kwargs)
        moments = [Moments(channels) for channels in processor.modality_channels]
        samples = [ValueSample() for _ in modalities]
        columns: set[str] = set()
        num_rows = 0
        for index, row in enumerate(rows):
            num_rows += 1
            columns.update(row)
            for m, (name, channels) in enumerate(zip(modalities, modality_channels, strict=True)):
                if row.get(name) is None:
                    continue
                where = f"row {row.get('id', index)!r}, modality {name!r}"
                raster = read_raster(row[name], channels, layout=None, where=where)
                covered = find_covered(raster, processor.nodata[m])
                if covered is None or covered.any():
                    level = measure_level(raster.values, covered, processor.reference_level[m])
                    moments[m].update(raster.values, covered, level)
                    samples[m].update(raster.values, covered, level)
        if num_rows == 0:
            raise ValueError("`rows` is empty; statistics need at least one row.")
        absent = [name for name in modalities if name not in columns]
        if absent:
            raise ValueError(f"No row has the columns {absent}; there are {sorted(columns)}. Correct `modalities`.")
        for m, (name, moment) in enumerate(zip(modalities, moments, strict=True)):
            fitted = fitted_statistics(name, moment, processor.rescale_factor[m])
            if fitted is not None:
                processor.image_mean[m], processor.image_std[m] = fitted
                ends = samples[m].quantiles(*RANGE_SHARES) * processor.rescale_factor[m]
                processor.value_range[m] = np.sort(ends.T).tolist()
        return processor


__all__ = ["SgmaImageProcessor"]
