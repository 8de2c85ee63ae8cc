"""From the rasters at hand to maps of any size: read on one grid, predicted tile by tile, written strip by strip.

GeoTIFF takes the extra `geo`; PNG, JPEG and `.npy` need no extra.
"""

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from transformers.utils import logging

from ..data.command_line import USER_ERRORS
from ..data.whole_files import check_writable
from ..data.windows import window_starts
from ..publishing.weights_digest import weights_digest
from ..rasters.grids import Grid, pixel_area
from ..rasters.raster import bounded_cache
from ..rasters.scene import RasterScene
from .map_files import plan_layers, plan_outputs
from .map_run import Batch, MapRun, RasterPrediction, Tiles, iso_dates
from .scene_levels import look_at
from .sliding_window import default_stride
from .strips import StripStore
from .turns import check_turns


Item = TypeVar("Item")

BATCHES_AHEAD = 2  # read while the model computes
MAPS_WAITING = 2  # that wait to be written


@dataclass(frozen=True)
class WantedMap:
    """A map to make: of which rasters, and where to; arguments are those of `predict_raster`."""

    rasters: AbstractContextManager[Mapping[str, Any]]  # there while it is entered
    output_path: str | os.PathLike
    like: str | os.PathLike | None = None
    extras: Sequence[str] = ()
    bbox: Sequence[float] | None = None
    version: Any = None  # what is another one, as JSON has it, for other rasters; None: by names and times of files


Outcome = RasterPrediction | Exception


@dataclass
class _Read:
    """What the thread that reads has got of a map: a batch, or that all of it is read, or an error."""

    wanted: WantedMap
    run: MapRun | None
    batch: Batch | None = None
    error: Exception | None = None


def predict_raster(
    model: Any,
    processor: Any,
    rasters: Mapping[str, Any],
    output_path: str | os.PathLike,
    *,
    like: str | os.PathLike | None = None,
    bbox: Sequence[float] | None = None,
    extras: Sequence[str] = (),
    tile_size: int | None = None,
    stride: int | None = None,
    tta: str | None = None,
    batch_size: int | None = None,
    resolution: float | None = None,
    resampling: str | Mapping[str, str] = "bilinear",
    min_confidence: float = 0.0,
    sieve: float = 0.0,
    allow_other_scale: bool = False,
    resume: bool = False,
    progress_bar: bool = False,
) -> RasterPrediction:
    """Predict a label map from rasters on any grids, of any size, with gaps.

    The rasters are brought to one grid as they are read. Nodata, alpha, masks, NaN and what lies outside a raster are
    missing data of that modality there; where nothing covers, the map is nodata. Overlapping tiles are predicted and
    their logits blended, see `sliding_window_logits`; tiles that nothing covers are skipped. Memory does not depend on
    the height: about `4 * (num_labels + num_modalities + 2) * tile_size * width` bytes for the strip at hand, and a
    few batches of tiles. Several processes (`accelerate launch`) share the strips; the result is the same.

    The reference level of a surface model is that of a window around each pixel, of the size of the training crops if
    the processor knows that (`reference_window`), else that of the tile, which should be as large as they were.

    Args:
        model: An SGMA model with a segmentation head, in eval mode; its device and dtype are used.
        processor: Its image processor.
        rasters: File, or list of files, per modality; None or no entry for what is missing. Bands are chosen as in
            `"a.tif:4,1,2"`, alpha confirmed as in `"a.tif:1,2,3,alpha"`, clouds hidden by `rasters.scene.masked`.
            Where several files cover a pixel, the first counts; with dates in `<name>_dates`, they are a series, see
            `rasters.scene.dated`. Files without a place on Earth are taken to show the same extent.
        output_path: The label map, `.tif` or `.png`. Its folder is made if need be.
        like: Raster whose grid the map gets. None: that of the first modality's first file, extended to its others.
        bbox: West, south, east and north of the part to map, in the CRS of that grid. None: all of it.
        resolution: Metres on the ground that a pixel of the map shall be. None: as the grid has it.
        extras: More rasters beside a GeoTIFF, named `<map>_<extra>.tif`: "confidence" (probability of the class, and
            entropy in [0, 1]), "probabilities" (a band per class), "robustness" (a band per modality: how much it was
            relied on, the mean over the model's four stages), "decision" (the modality relied on most) and
            "agreement" (a band per modality: how well its own prediction agrees with that of the others, see
            `modality_agreement`); of dates "reliance_month" (a band per month) and "reliance_day" (the day relied on
            most). A PNG knows "robustness" only, a file per modality.
        tile_size: Side of the tiles in pixels. None: the configuration's, that of the training crops, or else the
            processor's `size`.
        stride: Pixels between tiles, 1 to `tile_size`. None: see `sliding_window.default_stride`.
        tta: Test-time turns of each tile whose maps are averaged, `flips` or `d4`, see `average_over_turns`.
        batch_size: Tiles per forward pass, one of many dates as so many. None: 4, and 1 on a CPU, where 4 are slower.
        resampling: How rasters on other grids are interpolated, "bilinear" or another of GDAL's names, or one per
            modality. Bilinear is a mean of the area where the raster is the finer one, as in training.
        min_confidence: Probability of the class below which a pixel is unknown, 255.
        sieve: Square metres below which a patch of one class becomes part of the largest one beside it. It takes a
            byte of memory for each pixel of the map.
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
    options = {"tile_size": tile_size, "stride": stride, "batch_size": batch_size, "resolution": resolution}
    options |= {"tta": tta, "resampling": resampling, "min_confidence": min_confidence, "sieve": sieve}
    maker = MapMaker(model, processor, allow_other_scale=allow_other_scale, **options)
    wanted = WantedMap(nullcontext(rasters), output_path, like, extras, bbox)
    ((_, outcome),) = maker.make([wanted], resume=resume, share=True, progress_bar=progress_bar)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def check_options(
    config: Any,
    processor: Any,
    *,
    tile_size: int | None,
    stride: int | None,
    tta: str | None,
    batch_size: int | None,
    min_confidence: float,
    sieve: float,
    **others: Any,
) -> tuple[int, int]:
    """Refuse options of `MapMaker`, as far as no raster is needed to tell; returns tile size and stride."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
    if not 0 <= min_confidence < 1:
        raise ValueError(f"`min_confidence` is {min_confidence:g}; expected a probability from 0 to below 1.")
    if not 0 <= sieve < float("inf"):
        raise ValueError(f"`sieve` is {sieve:g}; expected square metres, 0 for none.")
    check_turns(tta)
    tile_size = config.tile_size or min(processor.size.values()) if tile_size is None else tile_size
    stride = default_stride(tile_size) if stride is None else stride
    window_starts(1, tile_size, stride)
    return tile_size, stride


class MapMaker:
    """Makes maps with one model, one after the other; arguments are those of `predict_raster`.

    The next tiles, of this map or of the next one, are read while the model computes, and what is done is written
    meanwhile. A map is the same whatever was made before it.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        tile_size: int | None = None,
        stride: int | None = None,
        tta: str | None = None,
        batch_size: int | None = None,
        resolution: float | None = None,
        resampling: str | Mapping[str, str] = "bilinear",
        min_confidence: float = 0.0,
        sieve: float = 0.0,
        allow_other_scale: bool = False,
    ):
        options = {"tile_size": tile_size, "stride": stride, "tta": tta, "batch_size": batch_size}
        options |= {"min_confidence": min_confidence, "sieve": sieve}
        self._tile_size, self._stride = check_options(model.config, processor, **options)
        self._model, self._processor, self._tta = model, processor, tta
        self._batch_size = batch_size or (1 if model.device.type == "cpu" else 4)
        self._min_confidence, self._sieve = min_confidence, sieve
        self._reading = {"resolution": resolution, "resampling": resampling}
        self._allow_other_scale = allow_other_scale
        kind = {"channels": processor.modality_channels, "nodata": processor.nodata}
        self._kind = {name: dict(zip(processor.modalities, parts, strict=True)) for name, parts in kind.items()}

    @property
    def num_labels(self) -> int:
        """Classes of the model."""
        return self._model.config.num_labels

    @cached_property
    def identity(self) -> dict[str, str]:
        """What decides the pixels of a map beside its rasters and its grid, by what it is."""
        options = {"tile_size": self._tile_size, "stride": self._stride, **self._reading}
        options |= {"min_confidence": self._min_confidence, "sieve": self._sieve}
        options |= {} if self._tta is None else {"tta": self._tta}
        return {
            "model": weights_digest(self._model.state_dict().items()),
            "processor": repr(sorted(self._processor.to_dict().items())),
            "options": repr(options),
        }

    def make(
        self,
        maps: Iterable[WantedMap],
        *,
        resume: bool = False,
        or_anew: bool = False,
        share: bool = False,
        progress_bar: bool = False,
    ) -> Iterator[tuple[WantedMap, Outcome]]:
        """Make maps; yields each with what was written, or with the error of what cannot be read or written.

        `maps` is drawn as far ahead as is read. `resume` goes on with the strips of runs that died; where those were
        of something else, it is an error, or the map is begun anew where `or_anew`. `share` lets the processes of a
        launch share the strips of a map; then there may be one map alone.
        """
        processes = _Processes(self._model.device.type if share else None)
        unfinished: list[MapRun] = []
        try:
            with bounded_cache(), _thread() as writer:
                how = {"resume": resume, "or_anew": or_anew, "processes": processes, "writer": writer}
                with closing(self._read(maps, unfinished, **how)) as items:
                    # The first one in this thread: processes that wait for each other do it in the one that computes.
                    ahead = _read_ahead(itertools.chain([*itertools.islice(items, 1)], items), BATCHES_AHEAD)
                    with closing(ahead):
                        bar = _progress(disable=not (progress_bar and processes.is_main))
                        yield from self._compute(ahead, unfinished, processes, writer, bar)
        finally:
            for run in unfinished:
                run.abandon(is_shared=processes.count > 1)

    def _compute(
        self,
        items: Iterable[_Read],
        unfinished: list[MapRun],
        processes: "_Processes",
        writer: ThreadPoolExecutor,
        bar: Any,
    ) -> Iterator[tuple[WantedMap, Outcome]]:
        """Let the model work on what is read, and hand out what is written."""
        waiting: deque[tuple[WantedMap, MapRun, Future]] = deque()

        def outcome(wanted: WantedMap, run: MapRun, written: Future) -> tuple[WantedMap, Outcome]:
            try:
                prediction = written.result()
            except USER_ERRORS as error:
                return wanted, fail(run, error)
            unfinished.remove(run)
            processes.wait()
            if processes.is_main:
                run.store.remove()
            return wanted, prediction

        def fail(run: MapRun | None, error: Exception) -> Exception:
            if run is None or run not in unfinished:
                return error
            unfinished.remove(run)
            run.error = run.abandon(error, is_shared=processes.count > 1)
            return run.error

        for item in items:
            run = item.run
            if run is not None and run.error is not None:  # it has failed, and what was read ahead is of no use
                continue
            try:
                if item.error is not None:
                    raise item.error
                if item.batch is not None:
                    bar.total = run.megapixels
                    bar.update(run.add(item.batch))
                    continue
                run.flush()
            except USER_ERRORS as error:
                yield item.wanted, fail(run, error)
                continue
            processes.wait()
            waiting.append((item.wanted, run, writer.submit(run.publish, is_main=processes.is_main)))
            while len(waiting) > MAPS_WAITING or (waiting and waiting[0][2].done()):
                yield outcome(*waiting.popleft())
        while waiting:
            yield outcome(*waiting.popleft())
        bar.close()

    def _read(self, maps: Iterable[WantedMap], unfinished: list[MapRun], **how: Any) -> Iterator[_Read]:
        """Open the rasters of each map, and read its batches."""
        for wanted in maps:
            run, began = None, time.monotonic()
            try:
                with (
                    wanted.rasters as rasters,
                    RasterScene(rasters, like=wanted.like, bbox=wanted.bbox, **self._kind, **self._reading) as scene,
                ):
                    run = self._begin(wanted, scene, began=began, **how)
                    unfinished.append(run)
                    for batch in run.batches():
                        yield _Read(wanted, run, batch)
            except USER_ERRORS as error:
                yield _Read(wanted, run, error=error)
            else:
                yield _Read(wanted, run)

    def _begin(
        self,
        wanted: WantedMap,
        scene: RasterScene,
        *,
        resume: bool,
        or_anew: bool,
        processes: "_Processes",
        writer: ThreadPoolExecutor,
        began: float,
    ) -> MapRun:
        """Look at what is to be written and at what the rasters hold, and make the folder of the strips."""
        model, processor = self._model, self._processor
        given = [name for name in processor.modalities if name in scene.modalities]
        layers = plan_layers(model.config, given, wanted.extras, scene.dates)
        plan = plan_outputs(wanted.output_path, layers, scene.paths, processor.modalities)
        tiles = Tiles(scene.grid.size, self._tile_size, self._stride)
        check_writable(plan.label_map)
        patch = self._smallest_patch(scene.grid)
        trained_size = model.config.tile_size or self._tile_size
        levels = look_at(scene, processor, trained_size, allow_other_scale=self._allow_other_scale)
        count = len(tiles.tops)
        inputs = _files_of(scene) if wanted.version is None else wanted.version
        fingerprint = {**self.identity, "inputs": inputs, "grid": repr(scene.grid)}
        is_small = processes.count == 1 and count == 1
        store = StripStore(plan.label_map, scene.grid.size[1], layers, fingerprint, in_memory=is_small)
        for name, dates in iso_dates(scene).items():
            store.tags[f"DATES_{name}"] = ",".join(date or "" for date in dates)
        if processes.is_main:
            store.prepare(resume=resume, or_anew=or_anew)
        processes.wait()
        how = {
            "min_confidence": self._min_confidence,
            "smallest_patch": patch,
            "levels": levels,
            "batch_size": self._batch_size,
            "tta": self._tta,
            "writer": writer,
            "began": began,
        }
        return MapRun(model, processor, scene, tiles, store, plan, strips=processes.share(count), **how)

    def _smallest_patch(self, grid: Grid) -> int:
        """Pixels that a patch of one class must have, 0 if it is not asked for."""
        area = pixel_area(grid) if self._sieve else 1.0
        if area is None:
            raise ValueError(
                f"`sieve` is {self._sieve:g} square metres, but the map's grid has no place on Earth. Leave it out."
            )
        return math.ceil(self._sieve / area)


class _Processes:
    """The processes of a launch, if there are some and they share a map; `device` is the model's, None to be alone."""

    def __init__(self, device: str | None):
        self._state, self.count, self._index = None, 1, 0
        if device is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=device == "cpu")
            self.count, self._index = self._state.num_processes, self._state.process_index
        self.is_main = self._index == 0

    def wait(self) -> None:
        """Let all processes come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def share(self, count: int) -> tuple[int, int]:
        """An equal share of so many things: the first one and the one behind the last."""
        return count * self._index // self.count, count * (self._index + 1) // self.count


def _progress(*, disable: bool) -> Any:
    bar_format = (
        "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} MPixel [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    )
    # How much there is to do is known with the first batch: until then nothing is shown.
    return logging.tqdm(total=1, unit="MPixel", desc="predict", bar_format=bar_format, disable=disable, delay=1e-3)


def _thread() -> ThreadPoolExecutor:
    """A thread that is within GDAL's environment for as long as it lives."""
    return ThreadPoolExecutor(1, initializer=lambda: bounded_cache().__enter__())


def _read_ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Draw items in another thread, up to `depth` of them ahead; what is raised there is raised here."""
    done = object()
    with _thread() as reader:
        waiting = deque(reader.submit(next, items, done) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not done:
                waiting.append(reader.submit(next, items, done))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def _files_of(scene: RasterScene) -> list[Any]:
    """Which files a scene is made of, and when they were changed."""
    inputs = []
    for name, sources in scene.inputs.items():
        for source in sources:
            files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
            inputs.append(
                [name, str(source.path), str(source.bands), files, *(source.mask.values if source.mask else ())]
            )
    return [*inputs, iso_dates(scene)] if scene.dates else inputs
