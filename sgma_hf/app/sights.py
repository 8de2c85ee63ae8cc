"""What somebody looks at: a part of a scene, with gaps if they cut some, read and encoded once."""

import functools
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class View:
    """What is looked at: a scene of the list or files of somebody's own, a part of it, and the gaps in it."""

    scene: str = ""
    files: tuple[tuple[str, str], ...] = ()  # modality, or `LABEL`, and file; instead of a scene
    top: int = 0  # of the part that is shown, in pixels of the scene
    left: int = 0
    gaps: tuple[tuple[str, Window], ...] = ()  # modality, and where it is missing, in pixels of the scene


@dataclass(frozen=True)
class Tile:
    """One tile of a sight: where it lies in it, what the model made of it, and which modalities cover it."""

    window: Window
    encoding: SgmaEncoding
    modality_mask: torch.Tensor
    days: Mapping[str, Sequence[float]] | None  # of each modality's images; None: there is no series


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

    @functools.cached_property
    def pictures(self) -> dict[str, bytes]:
        """What each modality shows in up to three bands, of a series the date in the middle, as WebP."""
        return {name: _picture(images[middle(images)]) for name, images in self.images.items()}


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
            return self._kept(view)

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
            yield Tile(place, encoding, mask, None if dates is None else days)


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


def middle(dates: Sequence[Any]) -> int:
    """Index of the date that stands for a series."""
    return len(dates) // 2


def _picture(raster: np.ma.MaskedArray) -> bytes:
    """Up to three bands in colours; where there is no data, it is transparent."""
    shown = ~raster.mask.any(axis=2)
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
