"""Image processor of SGMA: named rasters, some of them missing, in; one packed tensor and its mask out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .dates_sgma import observations
from .image_transforms_sgma import (
    REFERENCE_LEVELS,
    Moments,
    ValueSample,
    find_covered,
    read_raster,
    shared_level,
)
from .limits_sgma import MAX_IMAGE_SIDE, check_modalities, check_num_labels
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
from .rows_sgma import SgmaRowsMixin
from .saving_sgma import SgmaPushToHubMixin


# What `transformers` itself writes to `preprocessor_config.json` or passes on while loading.
SERVICE_KEYS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}


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
    SgmaProcessorModalitiesMixin, SgmaRowsMixin, SgmaPostProcessingMixin, SgmaPushToHubMixin, BaseImageProcessor
):
    r"""Turns samples with named, possibly missing rasters into the packed input of SGMA.

    Every sample is a dict `{"rgb": raster, "dsm": None, ...}`, as rows of data sets are: their other columns, `id`,
    `label`, `scoring_label`, `sequence`, `label_date` and `preview`, are passed over. A raster is an array (masked or
    not), a torch tensor, a PIL image, the path or the bytes of a `.npy` file or one that PIL reads, or an undecoded
    cell of `datasets`; bool, integers or floating point; (height, width) for one band, else channels first or last,
    told by the modality's channel count. Where both ends fit, they are first in a tensor and last in an array, unless
    `input_data_format` says otherwise. None is a missing modality.

    **Series.** A list of rasters, or an array of four axes with time first, is a series of dates of one modality.
    `<name>_dates` has a date for each: ISO text, a datetime, days since 2000-01-01, or None where it is unknown; it
    may be left out. Series may be of any lengths, and of some rows and modalities only. An empty one is a missing
    modality.

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
    the window's own pixels (source pixels, before resampling; one level for all bands and dates), so that heights in
    metres above sea level are comparable between places.

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
            `dates`: float32 (batch_size, T, num_modalities), days since 2000-01-01, NaN where unknown; only if any row
            has a series. Then the two above have T after batch_size, the length of the longest series, and False in
            the mask beyond the end of others. Slots of different modalities have nothing to do with each other.
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
            rows: Any iterable of dicts from modality name to raster, series or None. Other columns are not looked at.
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
                where = f"row {row.get('id', index)!r}, modality {name!r}"
                parts = []
                for value in observations(row, name):
                    raster = read_raster(value, channels, layout=None, where=where)
                    covered = find_covered(raster, processor.nodata[m])
                    if covered is None or covered.any():
                        parts.append((raster.values, covered))
                level = shared_level(parts, processor.reference_level[m]) if parts else None
                for values, covered in parts:
                    moments[m].update(values, covered, level)
                    samples[m].update(values, covered, level)
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
