"""From the rasters at hand to a map of any size: read on one grid, predicted tile by tile, written strip by strip.

GeoTIFF takes the extra `geo`; PNG, JPEG and `.npy` need no extra.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers.utils import logging

from ..data.whole_files import check_writable
from ..data.windows import Window, window_starts
from ..model.cells_sgma import LOGITS_STRIDE, pixel_logits, repeat_to_pixels
from ..model.limits_sgma import IGNORE_INDEX
from ..publishing.weights_digest import weights_digest
from ..rasters.raster import bounded_cache
from ..rasters.scene import RasterScene
from .agreement import modality_agreement
from .map_files import OutputPlan, StripStore, StripWriter, plan_layers, plan_outputs, publish
from .scene_levels import SceneLevels, look_at
from .sliding_window import TileBlender, default_stride


logger = logging.get_logger(__name__)
Item = TypeVar("Item")

ROWS_AT_ONCE = 32  # of a finished strip, when probabilities are made of it
BATCHES_AHEAD = 2  # read while the model computes
ROWS_WAITING = 2  # batches of rows that wait to be written


@dataclass(frozen=True)
class RasterPrediction:
    """What a run wrote."""

    files: dict[str, Path]  # what it is -> file, as in `OutputPlan`
    size: tuple[int, int]  # (height, width) of the map in pixels
    class_pixels: np.ndarray  # per class id, int64 (256,); 255 is "nothing covers"
    modalities: list[str]  # that had a raster, in the order in which they were given
    # Mean over the map of each modality's agreement with the others, in [0, 1], None where no pixel has two
    # modalities; empty unless it was asked for.
    agreement: dict[str, float | None]
    removed: list[Path]  # extras of an earlier map of that name, which do not belong to this one


class _Tiles:
    """How a grid is cut: tiles of one size, and strips that end where the next row of tiles begins."""

    def __init__(self, size: tuple[int, int], tile_size: int, stride: int):
        self.grid_size, self.size = size, (min(tile_size, size[0]), min(tile_size, size[1]))
        self.tops, self.lefts = (window_starts(length, tile_size, stride) for length in size)

    def bottom(self, strip: int) -> int:
        """First row below a strip."""
        return self.tops[strip + 1] if strip + 1 < len(self.tops) else self.grid_size[0]

    def first_row_for(self, strip: int) -> int:
        """The first row of tiles that reaches into a strip."""
        return next(row for row, top in enumerate(self.tops) if top + self.size[0] > self.tops[strip])


@dataclass
class _Batch:
    """Tiles of one row, ready for the model; without tiles, the end of the row."""

    row: int
    lefts: list[int]
    inputs: Mapping[str, torch.Tensor] | None
    share: float  # of the row's tiles


def predict_raster(
    model: Any,
    processor: Any,
    rasters: Mapping[str, Any],
    output_path: str | os.PathLike,
    *,
    like: str | os.PathLike | None = None,
    extras: Sequence[str] = (),
    tile_size: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
    resolution: float | None = None,
    resampling: str | Mapping[str, str] = "bilinear",
    allow_other_scale: bool = False,
    resume: bool = False,
    progress_bar: bool = False,
) -> RasterPrediction:
    """Predict a label map from rasters on any grids, of any size, with gaps.

    The rasters are brought to one grid as they are read. Nodata, alpha, masks, NaN and what lies outside a raster are
    missing data of that modality there; where nothing covers, the map is nodata. Overlapping tiles are predicted and
    their logits blended, see `sliding_window_logits`; tiles that nothing covers are skipped. Memory does not depend on
    the height: about `4 * (num_labels + num_modalities + 2) * tile_size * width` bytes for the strip at hand, and a
    few batches of tiles. Started in several processes (`accelerate launch`), each takes a share of the strips; the
    result is the same.

    The reference level of a surface model is that of a window around each pixel, of the size of the training crops if
    the processor knows that (`reference_window`), else that of the tile, which should be as large as they were.

    Args:
        model: An SGMA model with a segmentation head, in eval mode; its device and dtype are used.
        processor: Its image processor.
        rasters: File, or list of files, per modality; None or no entry for what is missing. Bands are chosen as in
            `"a.tif:4,1,2"`, alpha confirmed as in `"a.tif:1,2,3,alpha"`. Where several files cover a pixel, the first
            one counts. GeoTIFF and all that GDAL reads; PNG, JPEG and `.npy`, which are taken to show the same extent.
        output_path: The label map, `.tif` or `.png`. Its folder is made if need be.
        like: Raster whose grid the map gets. None: that of the first modality's first file, extended to its others.
        resolution: Metres on the ground that a pixel of the map shall be. None: as the grid has it.
        extras: More rasters beside a GeoTIFF, named `<map>_<extra>.tif`: "confidence" (probability of the class, and
            entropy in [0, 1]), "probabilities" (a band per class), "robustness" (a band per modality: how much it was
            relied on, the mean over the model's four stages), "decision" (the modality relied on most) and
            "agreement" (a band per modality: how well its own prediction agrees with that of the others, see
            `modality_agreement`). A PNG knows "robustness" only, a file per modality.
        tile_size: Side of the tiles in pixels. None: the configuration's, that of the training crops, or else the
            processor's `size`.
        stride: Pixels between tiles, 1 to `tile_size`. None: see `sliding_window.default_stride`.
        batch_size: Tiles per forward pass.
        resampling: How rasters on other grids are interpolated, "bilinear" or another of GDAL's names, or one per
            modality. Bilinear is a mean of the area where the raster is the finer one, as in training.
        allow_other_scale: Predict although a raster as a whole is far from what the processor was fitted to.
        resume: Go on with the strips of a run that died. Nothing else may have changed.
        progress_bar: Show a progress bar in megapixels.

    Returns:
        What was written. All files get their names at the end, when they are whole, none if the run dies. Extras of
        earlier runs stay if they belong to the same map (model, rasters, options), else they are removed.

    Raises:
        ValueError: If an input or option cannot be used, or a raster is on another scale; it is named.
        OSError: If the output cannot be written.
        ImportError: If rasterio is needed and missing.
    """
    tile_size = model.config.tile_size or min(processor.size.values()) if tile_size is None else tile_size
    stride = default_stride(tile_size) if stride is None else stride
    reading = {"like": like, "resolution": resolution, "resampling": resampling}
    kind = {"channels": processor.modality_channels, "nodata": processor.nodata}
    kind = {name: dict(zip(processor.modalities, values, strict=True)) for name, values in kind.items()}
    with bounded_cache(), RasterScene(rasters, **kind, **reading) as scene:
        given = [name for name in processor.modalities if name in scene.modalities]
        layers = plan_layers(model.config, given, extras)
        plan = plan_outputs(output_path, layers, scene.paths, processor.modalities)
        tiles = _Tiles(scene.grid.size, tile_size, stride)
        check_writable(plan.label_map)
        levels = look_at(scene, processor, model.config.tile_size or tile_size, allow_other_scale=allow_other_scale)
        options = {"tile_size": tile_size, "stride": stride, "resampling": resampling}
        store = StripStore(plan.label_map, scene.grid.size[1], layers, _fingerprint(model, processor, scene, options))
        how = {"levels": levels, "batch_size": batch_size, "progress_bar": progress_bar}
        run = _Run(model, processor, scene, tiles, store, **how)
        run.prepare(resume=resume)
        return _finish_or_keep(run, plan)


def _finish_or_keep(run: "_Run", plan: OutputPlan) -> RasterPrediction:
    """Compute and publish; if that fails, keep the strips if there are some to go on from."""
    store = run.store
    counts = np.zeros(256, dtype=np.int64)
    agreement: dict[str, float | None] = {}
    removed: list[Path] = []
    try:
        run.predict()
        run.wait()
        if run.is_main:
            removed = publish(store, plan, run.scene.grid.size, run.scene.grid.georeference)
            for _, values in store.rows(store.layers[0]):
                counts += np.bincount(values.ravel(), minlength=256)
            agreement = _mean_agreement(store)
    except BaseException as error:
        kept = len(run.tiles.tops) > 1 and not store.is_empty()
        if not kept and run.num_processes == 1:
            store.remove()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = " What is done is kept: make room and go on with `resume` (`--resume`)." if kept else ""
            raise OSError(error.errno, f"{error.strerror} while writing {plan.label_map}.{hint}") from error
        raise
    if run.is_main:
        store.remove()
    run.wait()
    return RasterPrediction(plan.files, run.scene.grid.size, counts, run.scene.modalities, agreement, removed)


def _mean_agreement(store: StripStore) -> dict[str, float | None]:
    """Mean of every band of the agreement over its pixels; empty if that is not among the layers."""
    for layer in store.layers:
        if layer.name == "agreement":
            sums, pixels = np.zeros(len(layer.bands)), np.zeros(len(layer.bands), dtype=np.int64)
            for _, values in store.rows(layer):
                sums += np.nansum(values, axis=(1, 2), dtype=np.float64)
                pixels += (~np.isnan(values)).sum((1, 2))
            pairs = zip(layer.bands, sums.tolist(), pixels.tolist(), strict=True)
            return {name: total / count if count else None for name, total, count in pairs}
    return {}


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        scene: RasterScene,
        tiles: _Tiles,
        store: StripStore,
        *,
        levels: SceneLevels | None,
        batch_size: int,
        progress_bar: bool,
    ):
        self.model, self.processor, self.scene, self.tiles, self.store = model, processor, scene, tiles, store
        self.levels, self.batch_size = levels, batch_size
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
        self._state = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=model.device.type == "cpu")
        self.num_processes, self.index = 1, 0
        if self._state is not None:
            self.num_processes, self.index = self._state.num_processes, self._state.process_index
        self.is_main = self.index == 0
        self.progress_bar = progress_bar and self.is_main
        given = [index for index, name in enumerate(processor.modalities) if name in scene.modalities]
        self._given = torch.tensor(given)
        self._extras = {layer.name for layer in store.layers[1:]}
        # What is blended: logits, coverage, and if wanted shares of reliance, and agreement and where it is known.
        self._with_shares = bool(self._extras & {"robustness", "decision"})
        self._with_agreement = "agreement" in self._extras
        per_modality = self._with_shares + 2 * self._with_agreement
        self._num_maps = model.config.num_labels + 1 + per_modality * len(given)

    def wait(self) -> None:
        """Let all processes come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def prepare(self, *, resume: bool) -> None:
        """Make the folder of the strips, see `StripStore.prepare`."""
        if self.is_main:
            self.store.prepare(resume=resume)
        self.wait()

    def predict(self) -> None:
        """Compute the strips of this process that are not there yet."""
        # An equal share of the strips, less those of an earlier run.
        count = len(self.tiles.tops)
        first, end = count * self.index // self.num_processes, count * (self.index + 1) // self.num_processes
        while first < end and self.store.has(first):
            first += 1
        if first == end:
            return
        width = self.scene.grid.size[1]
        total = (self.tiles.bottom(end - 1) - self.tiles.tops[first]) * width / 1e6
        bar_format = (
            "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} MPixel [{elapsed}<{remaining}, {rate_noinv_fmt}]"
        )
        with (
            ThreadPoolExecutor(1) as writer,
            logging.tqdm(
                total=total, unit="MPixel", desc="predict", bar_format=bar_format, disable=not self.progress_bar
            ) as bar,
        ):
            # Rows are written in another thread, a few batches behind; what is raised there is raised here.
            waiting: deque[Future] = deque()

            def write(function: Callable, *arguments: Any) -> None:
                waiting.append(writer.submit(function, *arguments))
                while len(waiting) > ROWS_WAITING or (waiting and waiting[0].done()):
                    waiting.popleft().result()

            blender = TileBlender(self._num_maps, self.tiles.size, width, top=self.tiles.tops[first])
            for batch in _read_ahead(self._batches(first, end), BATCHES_AHEAD):
                if batch.inputs is not None:
                    self._add(batch, blender)
                elif batch.row >= first:  # rows of tiles above only reach into the first strip
                    self._finish_strip(blender, batch.row, write)
                    if batch.row + 1 < end:
                        blender.advance(self.tiles.bottom(batch.row))
                if batch.row >= first:
                    rows = self.tiles.bottom(batch.row) - self.tiles.tops[batch.row]
                    bar.update(batch.share * rows * width / 1e6)
            while waiting:
                waiting.popleft().result()

    def _batches(self, first: int, end: int) -> Iterator[_Batch]:
        """Read and prepare tiles, row by row, from the first row of tiles that reaches into strip `first`.

        A batch never spans two rows, so that its composition does not depend on where a process began.
        """
        height, width = self.tiles.size
        as_read = {"do_resize": False, "input_data_format": "channels_last", "return_tensors": "pt"}
        for row in range(self.tiles.first_row_for(first), end):
            lefts, images, levels, passed = [], [], [], 0
            for left in self.tiles.lefts:
                window = Window(self.tiles.tops[row], left, height, width)
                read = self.scene.read(*window)
                passed += 1
                if read:
                    lefts.append(left)
                    images.append(read)
                    levels.append(None if self.levels is None else self.levels.read(window))
                if len(images) == self.batch_size or (images and left == self.tiles.lefts[-1]):
                    inputs = self.processor(images=images, levels=levels, **as_read).data
                    yield _Batch(row, lefts, inputs, passed / len(self.tiles.lefts))
                    lefts, images, levels, passed = [], [], [], 0
            yield _Batch(row, [], None, passed / len(self.tiles.lefts))

    @torch.no_grad()
    def _add(self, batch: _Batch, blender: TileBlender) -> None:
        """Predict a batch of tiles and blend it in."""
        pixel_values = batch.inputs["pixel_values"].to(self.model.device, self.model.dtype)
        modality_mask = batch.inputs["modality_mask"]  # on the CPU, where the model reads it without waiting
        given = self._given.to(self.model.device)
        if self._with_agreement:
            encoding = self.model.encode(pixel_values, modality_mask)
            outputs = self.model.fuse_and_decode(encoding)
        else:
            outputs = self.model(pixel_values=pixel_values, modality_mask=modality_mask)
        parts = [pixel_logits(outputs.logits, self.tiles.size), outputs.coverage.unsqueeze(1).float()]
        if self._with_shares:
            shares = torch.stack(self.processor.post_process_robustness(outputs, modality_mask=modality_mask))
            parts.append(shares[:, self._given.to(shares.device)])
        if self._with_agreement:
            agreement = modality_agreement(self.model, encoding, self._given.tolist())[:, given]
            agreement = repeat_to_pixels(agreement, LOGITS_STRIDE, self.tiles.size)
            # A blend of NaN is NaN: known values and where they are known are blended, and divided at the end.
            parts += [agreement.nan_to_num(0), (~agreement.isnan()).float()]
        for left, tile in zip(batch.lefts, torch.cat(parts, dim=1).cpu(), strict=True):
            blender.add(tile, self.tiles.tops[batch.row], left)

    def _finish_strip(self, blender: TileBlender, strip: int, write: Callable) -> None:
        writer = StripWriter(self.store, strip)
        for rows in blender.finish(self.tiles.bottom(strip)).split(ROWS_AT_ONCE, dim=1):
            write(writer.append, self._values(rows))
        write(writer.commit)

    def _values(self, maps: torch.Tensor) -> dict[str, np.ndarray]:
        """Blended maps, in the order of `_add`, -> values of every layer, (bands, rows, width)."""
        num_labels, given = self.model.config.num_labels, len(self._given)
        logits, covered, others = maps[:num_labels], maps[num_labels] > 0.5, maps[num_labels + 1 :]
        values = {"labels": logits.argmax(0, keepdim=True).to(torch.uint8).masked_fill(~covered, IGNORE_INDEX)}
        if self._extras & {"confidence", "probabilities"}:
            scores = logits.log_softmax(0)
            probabilities = scores.exp()
            entropy = -(probabilities * scores).sum(0, keepdim=True) / np.log(num_labels)
            values["confidence"] = torch.cat([probabilities.amax(0, keepdim=True), entropy.clamp(0, 1)])
            values["probabilities"] = probabilities
        if self._with_shares:
            shares, others = others[:given], others[given:]
            values["robustness"] = shares / shares.sum(0, keepdim=True).clamp_min(1e-12)
            values["decision"] = shares.argmax(0, keepdim=True).to(torch.uint8).masked_fill(~covered, IGNORE_INDEX)
        if self._with_agreement:
            agreement, known = others[:given], others[given:]
            values["agreement"] = torch.where(known > 0, agreement / known, float("nan"))
        for layer in self.store.layers:
            if layer.dtype == "float32":
                values[layer.name] = values[layer.name].masked_fill(~covered, float("nan"))
        return {layer.name: values[layer.name].numpy() for layer in self.store.layers}


def _read_ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Draw items in another thread, up to `depth` of them ahead; what is raised there is raised here."""
    done = object()
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, items, done) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not done:
                waiting.append(reader.submit(next, items, done))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def _fingerprint(model: Any, processor: Any, scene: RasterScene, options: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for pixels of two runs to fit together."""
    inputs = []
    for name, sources in scene.inputs.items():
        for source in sources:
            files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
            inputs.append([name, str(source.path), str(source.bands), files])
    return {
        "model": weights_digest(model.state_dict().items()),
        "processor": repr(sorted(processor.to_dict().items())),
        "inputs": inputs,
        "options": repr(options),
        "grid": repr(scene.grid),
    }
