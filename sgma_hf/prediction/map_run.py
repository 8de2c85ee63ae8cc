"""One map in the making: what is read of its tiles, what the model makes of them, and the strips that they become."""

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.windows import Window, window_starts
from ..model.cells_sgma import LOGITS_STRIDE, pixel_logits, repeat_to_pixels
from ..model.dates_sgma import dates_for, from_days, observations
from ..model.encoding_sgma import SgmaEncoding
from ..model.fusion_sgma import find_fusion
from ..model.limits_sgma import IGNORE_INDEX
from ..rasters.maps.areas import count_classes
from ..rasters.maps.specks import remove_specks
from ..rasters.scene import RasterScene
from .agreement import modality_agreement
from .map_files import OutputPlan, publish
from .periods import DAY, MONTH, Periods
from .scene_levels import SceneLevels
from .sliding_window import TileBlender
from .strips import StripStore, StripWriter
from .turns import average_over_turns


PIXELS_AT_ONCE = 2**17  # of a finished strip, when probabilities are made of it
ROWS_WAITING = 2  # batches of rows that wait to be written
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RasterPrediction:
    """What a run wrote."""

    files: dict[str, Path]  # what it is -> file, as in `OutputPlan`
    size: tuple[int, int]  # (height, width) of the map in pixels
    class_pixels: np.ndarray  # per class id, int64 (256,); 255 is what nothing covers, and what is unknown
    class_areas: np.ndarray | None  # the same in square metres on the ground, float64; None where nobody knows
    modalities: list[str]  # that had a raster, in the order in which they were given
    confidence: float | None  # mean probability of the likeliest class, of the pixels that something covers
    # Mean share of reliance on each modality over the same pixels; empty if the model does not tell.
    reliance: dict[str, float]
    # Mean over the map of each modality's agreement with the others, in [0, 1], None where no pixel has two
    # modalities; empty unless it was asked for.
    agreement: dict[str, float | None]
    dates: dict[str, list[str | None]]  # of each series, ISO 8601 in UTC, None where unknown
    removed: list[Path]  # extras of an earlier map of that name, which do not belong to this one
    seconds: float  # from when its rasters were opened; other maps are made meanwhile, see `MapMaker`


def iso_dates(scene: RasterScene) -> dict[str, list[str | None]]:
    """The dates of each series of a scene, in UTC; None where unknown."""
    times = {name: [from_days(day) for day in days] for name, days in scene.dates.items()}
    return {name: [time and time.isoformat() for time in several] for name, several in times.items()}


class Tiles:
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
class Batch:
    """Tiles of one row, ready for the model; without tiles, the end of the row."""

    row: int
    lefts: list[int]
    inputs: Mapping[str, torch.Tensor] | None
    share: float  # of the row's tiles
    periods: torch.Tensor | None = None  # see `Periods.of_rows`


class BlendedMaps:
    """What of a tile is blended with its neighbours, and what a pixel is when it is.

    These are, each for every pixel: the logits, whether it is covered, and for each modality in `given` (indices) its
    share of reliance, if the model tells; the share of each of the `periods`, if there are some; and for each modality
    its agreement with the others and whether that is known, if it is asked for.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        given: Sequence[int],
        *,
        with_agreement: bool,
        periods: Periods | None = None,
    ):
        self._model, self._processor, self._given = model, processor, torch.tensor(given)
        self._with_agreement, self.periods = with_agreement, periods
        self._with_shares = find_fusion(model.config).has_robustness
        per_modality = (self._with_shares + 2 * with_agreement) * len(given)
        self.count = model.config.num_labels + 1 + per_modality + (0 if periods is None else periods.count)
        self._how = {} if periods is None else {"output_date_robustness": True}

    def of_inputs(
        self,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor,
        dates: torch.Tensor | None = None,
        periods: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The maps of tiles, (tiles, `count`, height, width), from what the processor made of them.

        `periods` are what `Periods.of_rows` makes of the tiles.
        """
        known = dates_for(self._model.config, dates)
        if self._with_agreement:
            encoding = self._model.encode(pixel_values, modality_mask, **known)
            return self.of_encoding(encoding, modality_mask, periods)
        outputs = self._model(pixel_values=pixel_values, modality_mask=modality_mask, **known, **self._how)
        return self._of(outputs, modality_mask, periods)

    def of_encoding(
        self, encoding: SgmaEncoding, modality_mask: torch.Tensor, periods: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same from what `model.encode` made of that; it has no modality but those given."""
        maps = self._of(self._model.fuse_and_decode(encoding, **self._how), modality_mask, periods)
        if not self._with_agreement:
            return maps
        given = self._given.tolist()
        agreement = modality_agreement(self._model, encoding, given)[:, self._given.to(maps.device)]
        agreement = repeat_to_pixels(agreement, LOGITS_STRIDE, maps.shape[-2:])
        # A blend of NaN is NaN: known values and where they are known are blended, and divided at the end.
        return torch.cat([maps, agreement.nan_to_num(0), (~agreement.isnan()).float()], dim=1)

    def _of(self, outputs: Any, modality_mask: torch.Tensor, periods: torch.Tensor | None) -> torch.Tensor:
        parts = [pixel_logits(outputs.logits, outputs.coverage.shape[-2:]), outputs.coverage.unsqueeze(1).float()]
        if self._with_shares:
            shares = torch.stack(self._processor.post_process_robustness(outputs, modality_mask=modality_mask))
            parts.append(shares[:, self._given.to(shares.device)])
        if self.periods is not None:
            parts.append(self.periods.shares(outputs, modality_mask, periods))
        return torch.cat(parts, dim=1)

    def values(self, maps: torch.Tensor) -> dict[str, torch.Tensor]:
        """Blended maps (`count`, rows, width) -> what they say, each (bands, rows, width).

        `labels` int64 and their `probability`; the `logits`; `covered` bool (rows, width); `robustness` and
        `agreement`, with a band for each modality given, the latter NaN where it is not known; `Periods.values`.
        """
        num_labels, given = self._model.config.num_labels, len(self._given)
        logits, covered, others = maps[:num_labels], maps[num_labels] > 0.5, maps[num_labels + 1 :]
        best, labels = logits.max(0, keepdim=True)  # `argmax` takes eight times as long along the first axis
        values = {"logits": logits, "covered": covered, "labels": labels}
        values["probability"] = 1 / (logits - best).exp_().sum(0, keepdim=True)
        if self._with_shares:
            shares, others = others[:given], others[given:]
            values["robustness"] = shares / shares.sum(0, keepdim=True).clamp_min(1e-12)
        if self.periods is not None:
            values |= self.periods.values(others[: self.periods.count], covered)
            others = others[self.periods.count :]
        if self._with_agreement:
            agreement, known = others[:given], others[given:]
            values["agreement"] = torch.where((known > 0) & covered, agreement / known, float("nan"))
        return values


class MapRun:
    """One process's part of a map: `batches` in one thread, `add` for each of them in another, `publish` at the end.

    `strips` are the first strip of this process and the one behind its last, `smallest_patch` is in pixels. Rows are
    written by `writer`, a few batches behind; what is raised there is raised by `add` or `flush`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        scene: RasterScene,
        tiles: Tiles,
        store: StripStore,
        plan: OutputPlan,
        *,
        levels: SceneLevels | None,
        batch_size: int,
        tta: str | None,
        strips: tuple[int, int],
        writer: ThreadPoolExecutor,
        began: float,
        min_confidence: float,
        smallest_patch: int,
    ):
        self._began, self._min_confidence, self._smallest_patch = began, min_confidence, smallest_patch
        self.scene, self.tiles, self.store, self.plan = scene, tiles, store, plan
        self.error: Exception | None = None  # that ended it
        self._model, self._processor, self._levels, self._batch_size = model, processor, levels, batch_size
        self._first, self._end = strips
        self._tta = tta
        while self._first < self._end and store.has(self._first):  # of an earlier run
            self._first += 1
        given = [index for index, name in enumerate(processor.modalities) if name in scene.modalities]
        self._names = [processor.modalities[index] for index in given]
        self._extras = {layer.name for layer in store.layers[1:]}
        periods = Periods(scene.dates, by_day=DAY in self._extras) if self._extras & {MONTH, DAY} else None
        self._maps = BlendedMaps(model, processor, given, with_agreement="agreement" in self._extras, periods=periods)
        self._blender: TileBlender | None = None
        self._writer, self._waiting = writer, deque[Future]()

    @property
    def megapixels(self) -> float:
        """What is to be done, in millions of pixels of the map."""
        if self._first == self._end:
            return 0.0
        rows = self.tiles.bottom(self._end - 1) - self.tiles.tops[self._first]
        return rows * self.tiles.grid_size[1] / 1e6

    def batches(self) -> Iterator[Batch]:
        """Read and prepare tiles, row by row, from the first row of tiles that reaches into the first strip.

        A batch never spans two rows, so that its composition does not depend on where a process began.
        """
        if self._first == self._end:
            return
        height, width = self.tiles.size
        for row in range(self.tiles.first_row_for(self._first), self._end):
            lefts, images, levels, passed = [], [], [], 0
            for left in self.tiles.lefts:
                if self.error is not None:
                    return
                window = Window(self.tiles.tops[row], left, height, width)
                read = self.scene.read(*window)
                if images and read and self._is_full([*images, read]):
                    yield self._batch(row, lefts, images, levels, passed)
                    lefts, images, levels, passed = [], [], [], 0
                passed += 1
                if read:
                    lefts.append(left)
                    images.append(read)
                    levels.append(None if self._levels is None else self._levels.read(window))
            if images:
                yield self._batch(row, lefts, images, levels, passed)
                passed = 0
            yield Batch(row, [], None, passed / len(self.tiles.lefts))

    def _is_full(self, images: Sequence[Mapping[str, Any]]) -> bool:
        """Whether tiles are too many for one batch: more than asked for, or of more images than these have at most.

        Without dates that is the same. Those of a tile are never parted.
        """
        slots = max(len(observations(row, name)) for row in images for name in self._names)
        return len(images) * slots > self._batch_size

    def _batch(self, row: int, lefts: list[int], images: list, levels: list, passed: int) -> Batch:
        as_read = {"do_resize": False, "input_data_format": "channels_last", "return_tensors": "pt"}
        inputs = self._processor(images=images, levels=levels, **as_read).data
        periods = self._maps.periods and self._maps.periods.of_rows(images, self._processor.modalities)
        return Batch(row, lefts, inputs, passed / len(self.tiles.lefts), periods)

    def add(self, batch: Batch) -> float:
        """Predict a batch of tiles and blend it in, or finish its row; returns the megapixels that are done by it."""
        if self._blender is None:
            width, top = self.tiles.grid_size[1], self.tiles.tops[self._first]
            self._blender = TileBlender(self._maps.count, self.tiles.size, width, top=top)
        if batch.inputs is not None:
            for left, tile in zip(batch.lefts, self._predict(batch), strict=True):
                self._blender.add(tile, self.tiles.tops[batch.row], left)
        elif batch.row >= self._first:  # rows of tiles above only reach into the first strip
            self._finish_strip(batch.row)
            if batch.row + 1 < self._end:
                self._blender.advance(self.tiles.bottom(batch.row))
        if batch.row < self._first:
            return 0.0
        rows = self.tiles.bottom(batch.row) - self.tiles.tops[batch.row]
        return batch.share * rows * self.tiles.grid_size[1] / 1e6

    @torch.no_grad()
    def _predict(self, batch: Batch) -> torch.Tensor:
        """What is blended of tiles, (tiles, maps, height, width), on the CPU, the mean over the test-time turns."""
        pixel_values = batch.inputs["pixel_values"].to(self._model.device, self._model.dtype)
        modality_mask = batch.inputs["modality_mask"]  # on the CPU, where the model reads it without waiting
        dates = batch.inputs.get("dates")

        def predict(turn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            mask = turn(modality_mask) if modality_mask.ndim > 3 else modality_mask
            return self._maps.of_inputs(turn(pixel_values), mask, dates, batch.periods)

        return average_over_turns(predict, self._tta).cpu()

    def _finish_strip(self, strip: int) -> None:
        bottom = self.tiles.bottom(strip)
        writer, totals = StripWriter(self.store, strip), dict[str, np.ndarray]()
        for rows in self._blender.finish(bottom).split(max(1, PIXELS_AT_ONCE // self.tiles.grid_size[1]), dim=1):
            values, sums = self._values(rows)
            totals = {name: totals.get(name, 0) + part for name, part in sums.items()}
            self._write(writer.append, values)
        self._write(writer.commit, totals)

    def _write(self, function: Callable, argument: Any) -> None:
        self._waiting.append(self._writer.submit(function, argument))
        while len(self._waiting) > ROWS_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def flush(self) -> None:
        """Wait for all that is still to be written."""
        while self._waiting:
            self._waiting.popleft().result()

    def _values(self, maps: torch.Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Blended maps -> values of every layer, (bands, rows, width), and their sums."""
        values = self._maps.values(maps)
        covered, probability = values["covered"], values["probability"]
        is_known = covered & (probability >= self._min_confidence)
        values["labels"] = values["labels"].to(torch.uint8).masked_fill(~is_known, IGNORE_INDEX)
        sums = {
            "covered": covered.sum(),
            "confidence": (probability * covered).sum(dtype=torch.float64),
        }
        if self._extras & {"confidence", "probabilities"}:
            scores = values["logits"].log_softmax(0)
            values["probabilities"] = scores.exp()
            entropy = -(values["probabilities"] * scores).sum(0, keepdim=True) / np.log(len(scores))
            values["confidence"] = torch.cat([probability, entropy.clamp(0, 1)])
        if "robustness" in values:
            sums["reliance"] = (values["robustness"] * covered).sum((1, 2), dtype=torch.float64)
        if "decision" in self._extras:
            decision = values["robustness"].max(0, keepdim=True).indices
            values["decision"] = decision.to(torch.uint8).masked_fill(~covered, IGNORE_INDEX)
        if "agreement" in values:
            sums["agreement"] = values["agreement"].nansum((1, 2), dtype=torch.float64)
            sums["agreeing"] = (~values["agreement"].isnan()).sum((1, 2))
        for layer in self.store.layers:
            if layer.dtype == "float32":
                values[layer.name] = values[layer.name].masked_fill(~covered, float("nan"))
        written = {layer.name: values[layer.name].numpy() for layer in self.store.layers}
        return written, {name: part.numpy() for name, part in sums.items()}

    def publish(self, *, is_main: bool) -> RasterPrediction:
        """Let the main process give the files their names, once all strips are there; says what they hold."""
        sums = self.store.sums()
        if self._smallest_patch > 1:
            self._remove_specks()
        rows = (((top, 0), values[0]) for top, values in self.store.rows(self.store.layers[0]))
        counts = count_classes(rows, self.scene.grid)
        removed = publish(self.store, self.plan, self.scene.grid) if is_main else []
        covered = int(sums["covered"])
        reliance = (sums["reliance"] / covered).tolist() if covered and "reliance" in sums else []
        pairs = zip(sums.get("agreement", ()), sums.get("agreeing", ()), strict=True)
        agreement = [float(total / count) if count else None for total, count in pairs]
        return RasterPrediction(
            files=self.plan.files,
            size=self.scene.grid.size,
            class_pixels=counts.pixels,
            class_areas=counts.areas,
            modalities=self.scene.modalities,
            dates=iso_dates(self.scene),
            confidence=float(sums["confidence"]) / covered if covered else None,
            reliance=dict(zip(self._names, reliance, strict=False)),
            agreement=dict(zip(self._names, agreement, strict=False)),
            removed=removed,
            seconds=time.monotonic() - self._began,
        )

    def _remove_specks(self) -> None:
        """Sieve the classes of the whole map."""
        labels = np.concatenate([values[0] for _, values in self.store.rows(self.store.layers[0])])
        self.store.labels = remove_specks(labels, self._smallest_patch, IGNORE_INDEX)

    def abandon(self, error: Exception | None = None, *, is_shared: bool) -> Exception | None:
        """Keep the strips if there are some to go on from; returns the error, with what to do about a full disk."""
        kept = self.store.held is None and not self.store.is_empty()
        if not kept and not is_shared:
            self.store.remove()
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            hint = " What is done is kept: make room and go on with `resume` (`--resume`)." if kept else ""
            return OSError(error.errno, f"{error.strerror} while writing {self.plan.label_map}.{hint}")
        return error
