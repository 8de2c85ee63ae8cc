"""Maps of many scenes by as many processes as there are, each scene once: `predict_scenes`."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...data.whole_files import check_writable, read_dataclass, write_json
from ...model.limits_sgma import IGNORE_INDEX
from ...rasters.listings.listed import ListedScene
from ..map_run import FULL_DISK, RasterPrediction
from ..maps import MapMaker, WantedMap
from .claims import Claims


FOLDER = ".scenes"  # in that of the maps: what is known of each scene, and who has which
RUN_FILE, COMMAND_FILE = "run.json", "command.json"  # there: what decides the pixels, and for people how it was asked
WAIT_SECONDS = 0.5  # before it is looked again whether another process has ended


@dataclass(frozen=True)
class SceneRecord:
    """What came of a scene, as JSON has it."""

    scene: str
    version: list[Any]  # of its files, see `ListedScene.version`
    error: str | None = None  # why there is no map
    seconds: float | None = None  # see `RasterPrediction`
    size: list[int] = field(default_factory=list)  # (height, width) of the map in pixels
    modalities: list[str] = field(default_factory=list)  # that had a raster
    dates: dict[str, list[str | None]] = field(default_factory=dict)  # see `RasterPrediction`
    class_pixels: list[int] = field(default_factory=list)  # per class of the model, and behind them of no class
    class_areas: list[float] | None = None  # the same in square metres, None where nobody knows
    confidence: float | None = None  # means as in `RasterPrediction`
    reliance: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float | None] = field(default_factory=dict)


class SceneLedger:
    """What is known of the scenes in a folder of maps: a file for each that was tried, and one for what they share."""

    def __init__(self, output: Path, suffix: str):
        self.output, self._suffix, self.folder = output, suffix, output / FOLDER
        self._failed: dict[str, int] = {}  # in earlier runs, and so to be tried again: scene -> time of its record

    def check_free(self, *, resume: bool, joins: bool) -> None:
        """Raise ValueError if there is a run, unless it is to be gone on with (`resume`, or `joins` a launch)."""
        check_writable(self.output / "map")
        if (self.folder / RUN_FILE).is_file() and not (resume or joins):
            raise ValueError(
                f"{self.output} holds maps of an earlier run. Go on with it by `resume` (`--resume`): it makes those "
                "that are missing, or choose another folder."
            )

    def begin(self, identity: Mapping[str, Any], scenes: Sequence[ListedScene]) -> None:
        """Begin a run, or go on with one of the same `identity`; ValueError if there is another one."""
        path = self.folder / RUN_FILE
        if not path.is_file():
            write_json(path, identity)
            return
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key, value in identity.items() if earlier.get(key) != value]
        if differing:
            raise ValueError(
                f"{self.output} holds maps of another run, which differs from this one in {differing}. Choose another "
                f"folder, or remove {self.folder}, and all maps are made anew."
            )
        records = [record for scene in scenes if (record := self.record(scene.name)) is not None]
        self._failed = {record.scene: self._noted(record.scene) for record in records if record.error is not None}

    def note_command(self, command: str, checkpoint: str, version: str) -> None:
        """Keep the command line of the run, the latest one where it was gone on with, for a report."""
        made = {"command": command, "checkpoint": checkpoint, "version": version}
        write_json(self.folder / COMMAND_FILE, made)

    def map_of(self, name: str) -> Path:
        """The map of a scene."""
        return self.output / f"{name}{self._suffix}"

    def record(self, name: str) -> SceneRecord | None:
        """What came of a scene; None if it was not tried."""
        path = self._record_path(name)
        return read_dataclass(SceneRecord, path, "record of a scene") if path.is_file() else None

    def _record_path(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.json"

    def _noted(self, name: str) -> int:
        return self._record_path(name).stat().st_mtime_ns

    def write(self, record: SceneRecord) -> None:
        """Note what came of a scene."""
        write_json(self._record_path(record.scene), asdict(record))

    def is_settled(self, scene: ListedScene) -> bool:
        """Whether there is nothing to do for a scene: its map is there, or it has failed in this run."""
        record = self.record(scene.name)
        if record is None or record.version != scene.version():
            return False
        if record.error is not None:
            return self._noted(scene.name) != self._failed.get(scene.name)
        return self.map_of(scene.name).is_file()


def predict_scenes(
    maker: MapMaker,
    scenes: Sequence[ListedScene],
    output: Path,
    *,
    suffix: str = ".tif",
    extras: Sequence[str] = (),
    like: str | None = None,
    resume: bool = False,
    joins: bool = False,
) -> Iterator[SceneRecord]:
    """Make the maps of scenes that are not there yet, `output/<scene><suffix>`; yields what came of each.

    What is wrong with a scene is noted, and the others are made. Processes that do this at once, here or on machines
    with the same disk, have each scene once; what a process had that died is taken over. It returns when all scenes
    are settled, whoever has made them.

    Args:
        maker: Makes the maps.
        scenes: What `list_scenes` found, or a part of it.
        output: Folder of the maps. It also holds what is known of each scene, in `.scenes`.
        suffix: `.tif` or `.png`.
        extras: As for `predict_raster`; a scene of one modality goes without "agreement".
        like: Modality whose grid the maps get, where a scene has it. None: its first one.
        resume: Go on with a run that is there.
        joins: Whether processes of the same launch may have begun the run.

    Raises:
        ValueError: If the folder holds another run, or this one and it is not to be gone on with.
        OSError: If nothing can be written there, or the disk is full.
    """
    ledger = SceneLedger(output, suffix)
    ledger.check_free(resume=resume, joins=joins)
    ledger.begin({**maker.identity, "extras": list(extras), "like": like}, scenes)
    by_map, left = {ledger.map_of(scene.name): scene for scene in scenes}, list(scenes)
    with Claims(ledger.folder / "claims") as claims:
        while left:
            wanted = (_wanted_map(scene, ledger, extras, like) for scene in left if _take(scene, ledger, claims))
            is_idle = True
            for made, outcome in maker.make(wanted, resume=True, or_anew=True):
                record, is_idle = _record_of(by_map[Path(made.output_path)], outcome, maker.num_labels), False
                ledger.write(record)
                claims.release(record.scene)
                yield record
                if isinstance(outcome, OSError) and outcome.errno in FULL_DISK:
                    raise outcome
            left = [scene for scene in left if not ledger.is_settled(scene)]
            if left and is_idle:  # others are at them
                time.sleep(WAIT_SECONDS)


def _take(scene: ListedScene, ledger: SceneLedger, claims: Claims) -> bool:
    """Claim a scene that nobody has made or is making."""
    if ledger.is_settled(scene) or not claims.take(scene.name):
        return False
    if ledger.is_settled(scene):  # by somebody who gave it back meanwhile
        claims.release(scene.name)
        return False
    return True


def _wanted_map(scene: ListedScene, ledger: SceneLedger, extras: Sequence[str], like: str | None) -> WantedMap:
    names = scene.modalities
    given = [name for name in extras if name != "agreement" or len(names) > 1]
    version = None if scene.row is None else scene.version()  # files of a row are others each time
    return WantedMap(scene.opened(like), ledger.map_of(scene.name), extras=given, version=version)


def _record_of(scene: ListedScene, outcome: RasterPrediction | Exception, num_labels: int) -> SceneRecord:
    if isinstance(outcome, Exception):
        text = str(outcome) or type(outcome).__name__
        return SceneRecord(scene.name, scene.version(), text, modalities=scene.modalities)
    kept = [*range(num_labels), IGNORE_INDEX]
    return SceneRecord(
        scene=scene.name,
        version=scene.version(),
        seconds=outcome.seconds,
        size=list(outcome.size),
        modalities=outcome.modalities,
        dates=outcome.dates,
        class_pixels=outcome.class_pixels[kept].tolist(),
        class_areas=None if outcome.class_areas is None else outcome.class_areas[kept].tolist(),
        confidence=outcome.confidence,
        reliance=outcome.reliance,
        agreement=outcome.agreement,
    )
