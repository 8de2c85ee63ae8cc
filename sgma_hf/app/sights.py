"""What somebody looks at: a part of a scene, with gaps if they cut some, read and encoded once."""

import functools
import io
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.class_maps import ClassMap
from ..data.command_line import USER_ERRORS
from ..data.windows import Window
from ..evaluation.scenes import TruthRaster
from ..model.dates_sgma import dates_for, from_days, observations, read_dates
from ..model.encoding_sgma import SgmaEncoding
from ..model.limits_sgma import DATES_SUFFIX, IGNORE_INDEX
from ..prediction.map_run import Tiles
from ..prediction.scene_levels import SceneLevels, look_at
from ..prediction.sliding_window import default_stride
from ..rasters.listings.listed import ListedScene
from ..rasters.scene import RasterScene
from ..visualization.boards import bands_to_show, stretch


LABEL = "label"  # stands for the truth among the modalities of a listed scene
_KEPT = 4  # sights, each of them some 100 MB
# How files begin that a stranger may hand in; GDAL reads others too, some of which name files of this machine.
_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x89PNG", b"\xff\xd8\xff", b"\x93NUMPY")

Date = tuple[str, datetime | None]  # of a modality; all its images of one moment, or of none that is known


@dataclass(frozen=True)
class View:
    """What is looked at: a scene of the list or files of somebody's own, a part of it, and the gaps in it."""

    scene: str = ""
    files: tuple[tuple[str, str], ...] = ()  # modality, or `LABEL`, and file; instead of a scene
    top: int = 0  # of the part that is shown, in pixels of the scene
    left: int = 0
    gaps: tuple[tuple[str, Window], ...] = ()  # modality, and where it is missing, in pixels of the scene
    # Dates that do not count, and the one that a series shows; what is read and encoded is the same.
    off: frozenset[Date] = field(default=frozenset(), compare=False)
    shown: frozenset[Date] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Tile:
    """One tile of a sight: where it lies in it, what the model made of it, and which modalities cover it."""

    window: Window
    encoding: SgmaEncoding
    modality_mask: torch.Tensor
    dates: Mapping[str, Sequence[Date]]  # of each modality's images

    def only(self, modalities: Collection[str], off: Collection[Date]) -> "Tile":
        """The tile as if there were some modalities alone, and of these none of the dates `off`."""
        kept = torch.zeros_like(self.encoding.observations, device="cpu")  # (1, T, M)
        for index, (name, dates) in enumerate(self.dates.items()):
            kept[0, : len(dates), index] = torch.tensor([name in modalities and date not in off for date in dates])
        mask = self.modality_mask
        by_pixel = kept if mask.ndim in (3, 5) else kept[:, 0]
        by_pixel = by_pixel[(..., *[None] * (mask.ndim - by_pixel.ndim))]
        return replace(self, encoding=self.encoding.only(kept), modality_mask=mask & by_pixel)


@dataclass(frozen=True)
class Sight:
    """A part of a scene, ready to predict from any of its modalities."""

    scene_size: tuple[int, int]
    window: Window  # what is shown, in pixels of the scene
    # What each modality shows there, of a series each date: (height, width, channels), masked where there is no data.
    images: Mapping[str, Sequence[np.ma.MaskedArray]]
    dates: Mapping[str, Sequence[datetime | None]]  # of series
    truth: np.ndarray | None  # class ids, uint8 (height, width), 255 for none
    note: str  # what is wrong with the truth
    tiles: Tiles
    encoded: Sequence[Tile]  # row by row; without those that nothing covers
    off: frozenset[Date] = frozenset()  # see `View`
    shown: frozenset[Date] = frozenset()
    pictures: dict[Date, bytes] = field(default_factory=dict)  # that were made

    @functools.cached_property
    def moments(self) -> list[Date]:
        """The dates of all series, each once."""
        return list(dict.fromkeys((name, time) for name, times in self.dates.items() for time in times))

    def shown_date(self, name: str) -> Date:
        """The date of a modality that its picture is of: that which was chosen, or the one in the middle."""
        own = [date for date in self.moments if date[0] == name] or [(name, None)]
        return next((date for date in own if date in self.shown), own[len(own) // 2])

    def picture(self, name: str) -> bytes:
        """What a modality shows in up to three bands, of a series one date, as WebP."""
        date = self.shown_date(name)
        if date not in self.pictures:
            images = zip(self.images[name], self.dates.get(name, [None]), strict=True)
            parts = [image for image, time in images if time == date[1]]
            image = functools.reduce(lambda one, other: np.ma.where(one.mask, other, one), parts)
            self.pictures[date] = _picture(image)
        return self.pictures[date]


class Sights:
    """The scenes that can be looked at; the last few sights are kept.

    Args:
        model: An SGMA model with a segmentation head, in eval mode.
        processor: Its image processor.
        scenes: Those of the list, with their truth as the modality `LABEL`.
        classes: Which label values of rasters are which class; None: they are ids.
        side: Of what is shown at once, at most, in pixels.
        allow_other_scale: Look at rasters of another unit or bit depth all the same.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        scenes: Sequence[ListedScene] = (),
        *,
        classes: ClassMap | None = None,
        side: int = 512,
        allow_other_scale: bool = False,
    ):
        self.model, self.processor, self.side = model, processor, side
        self.scenes = {scene.name: scene for scene in scenes}
        self._classes, self._allow_other_scale = classes, allow_other_scale
        self._lock = threading.Lock()
        self._kept = functools.lru_cache(_KEPT)(self._look)

    def look(self, view: View) -> Sight:
        """Read and encode what is looked at; ValueError or OSError if that is not possible."""
        with self._lock:  # of two that ask for one sight, the second waits for it
            return replace(self._kept(view), off=view.off, shown=view.shown)

    def _look(self, view: View) -> Sight:
        scene = _own_scene(view.files) if view.files else self.scenes[view.scene]
        model, processor = self.model, self.processor
        kinds = {"channels": processor.modality_channels, "nodata": processor.nodata}
        kind: dict[str, Any] = {
            name: dict(zip(processor.modalities, parts, strict=True)) for name, parts in kinds.items()
        }
        with scene.opened() as rasters:
            label = scene.rasters.get(LABEL, rasters.get(LABEL))
            rasters = {name: files for name, files in rasters.items() if name not in (LABEL, LABEL + DATES_SUFFIX)}
            if not rasters:
                raise ValueError(f"{scene.name} has none of the modalities {', '.join(processor.modalities)}.")
            truth, note = None, ""
            if label is not None:
                classes = self._classes if scene.row is None else None
                truth, note = _or_why_not(TruthRaster.open, label[0], model.config.num_labels, classes)
            if truth is not None:
                rasters[LABEL], kind["channels"][LABEL] = truth.source, truth.channels
                kind |= {"resampling": {LABEL: "nearest"}, "undeclared": [LABEL] if truth.is_undeclared else []}
            with RasterScene(rasters, **kind) as opened:
                window = self._window(view, opened.grid.size)
                read = functools.partial(_read, opened, processor.modalities, view.gaps)
                images, ids = read(window), opened.read(*window, modalities=[LABEL])
                labels, problem = _or_why_not(_class_ids, truth, ids[LABEL]) if ids else (None, "")
                tile_size = model.config.tile_size or min(processor.size.values())
                levels = look_at(opened, processor, tile_size, allow_other_scale=self._allow_other_scale)
                tiles = Tiles(window[2:], tile_size, default_stride(tile_size))
                encoded = list(self._encode(read, tiles, window, levels))
        names = [name for name in processor.modalities if name in images]
        shown = {name: observations(images, name) for name in names}
        dates = {name: list(map(from_days, read_dates(images, name))) for name in names if name in opened.dates}
        return Sight(opened.grid.size, window, shown, dates, labels, note or problem, tiles, encoded)

    def _window(self, view: View, size: tuple[int, int]) -> Window:
        """The part that a view asks for, within the scene."""
        height, width = (min(self.side, length) for length in size)
        top, left = max(0, min(view.top, size[0] - height)), max(0, min(view.left, size[1] - width))
        return Window(top, left, height, width)

    @torch.no_grad()
    def _encode(
        self, read: Callable[[Window], dict[str, Any]], tiles: Tiles, window: Window, levels: SceneLevels | None
    ) -> Iterator[Tile]:
        """What `predict` gives the model of the part that is shown, tile by tile."""
        model = self.model
        for place in (Window(top, left, *tiles.size) for top in tiles.tops for left in tiles.lefts):
            there = place.moved(window.top, window.left)
            images = read(there)
            if not images:
                continue
            how = {"do_resize": False, "input_data_format": "channels_last", "return_tensors": "pt"}
            inputs = self.processor(images=[images], levels=[levels and levels.read(there)], **how)
            dates, mask = inputs.get("dates"), inputs["modality_mask"]
            known = dates_for(model.config, dates)
            encoding = model.encode(inputs["pixel_values"].to(model.device, model.dtype), mask, **known)
            days = {name: read_dates(images, name) for name in self.processor.modalities}
            yield Tile(place, encoding, mask, {name: [(name, from_days(day)) for day in days[name]] for name in days})


def _read(
    scene: RasterScene, modalities: Sequence[str], gaps: Sequence[tuple[str, Window]], window: Window
) -> dict[str, Any]:
    """What `scene.read` reads of a window, with the gaps in it."""
    images = scene.read(*window, modalities=modalities)
    for name, gap in gaps:
        inside = gap.moved(-window.top, -window.left).inside(window[2:])
        found = [_with_gap(image, inside) for image in observations(images, name)]
        if found:
            images[name] = found if name in scene.dates else found[0]
    return images


def with_dates(view: View, sight: Sight, off: Sequence[int], shown: Sequence[int]) -> View:
    """A view where of the sight's `moments`, by index, some do not count and some are shown; the rest is as it was."""
    here = set(sight.moments)
    chosen = [frozenset(sight.moments[index] for index in indices) for indices in (off, shown)]
    return replace(view, off=view.off - here | chosen[0], shown=view.shown - here | chosen[1])


def _picture(raster: np.ma.MaskedArray) -> bytes:
    """Up to three bands in colours; where there is no data, it is transparent."""
    shown = ~np.ma.getmaskarray(raster).any(axis=2)
    values = raster.data[..., bands_to_show(raster.shape[2])]
    picture, _ = stretch(np.where(shown[..., None], values, 0), shown)
    alpha = np.where(shown, 255, 0).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.dstack([picture, alpha])).save(file, "WEBP", quality=85)
    return file.getvalue()


def _own_scene(files: Sequence[tuple[str, str]]) -> ListedScene:
    """Files that somebody handed in; ValueError if one is of none of the formats that may be."""
    for _, file in files:
        with open(file, "rb") as opened:
            if not opened.read(8).startswith(_BEGINNINGS):
                raise ValueError(f"{file} is no TIFF, PNG, JPEG or .npy file.")
    return ListedScene("What was handed in", {name: [file] for name, file in files})


def _with_gap(image: np.ma.MaskedArray, gap: Window) -> np.ma.MaskedArray:
    mask = image.mask.copy()
    mask[gap.slices] = True
    return np.ma.MaskedArray(image.data, mask)


def _or_why_not(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What a function returns, or why it cannot."""
    try:
        return function(*arguments), ""
    except USER_ERRORS as error:
        return None, str(error)


def _class_ids(truth: TruthRaster, image: np.ma.MaskedArray) -> np.ndarray:
    ids, is_there = truth.ids(image)
    return np.where(is_there & (ids < truth.num_labels), ids, IGNORE_INDEX).astype(np.uint8)
