"""When a raster was taken: by its name, its own tags, a STAC item beside it, or a table. Never by a guess."""

import contextlib
import csv
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ..model.dates_sgma import from_days, to_days
from .files import uses_pillow
from .opening import as_source, is_npy, open_dataset


# What stands around the date of acquisition in names. A number of days of the year, and a month alone,
# count only where a known kind of name has them: a number that could be anything is no date.
_DATE = re.compile(
    r"""
    (?: (?<!\d) | (?<=L[COTEM]0\d{7}) )                                   # after path and row of Landsat's bulk orders
    (?P<year>(?:19|20)\d\d) (?P<gap>[-_.]?) (?P<month>\d\d) (?P=gap) (?P<day>\d\d)
    (?: (?:T|[-_](?=\d{6}(?!\d)))?                                       # T105021, and 105021 behind - or _
        (?P<hour>[01]\d|2[0-3])(?P<minute>[0-5]\d) (?:(?P<second>[0-5]\d)\d?)? Z? )?
    (?: (?!\d) | (?=\d\dT\d) )
    |                                                                     # MODIS, AppEEARS, HLS, Landsat until 2016
    (?: (?<=[._]A) | (?<=doy) | (?<!\d)(?=\d{7}T\d{6}) | (?<=L[COTEM]\d{7})(?=\d{7}[A-Z]{3}\d\d) )
    (?P<doy>(?:19|20)\d{5}(?:T\d{6})?) (?!\d)
    |                                                                     # monthly mosaics: of Planet, SpaceNet 7
    (?<!\d) (?P<mosaic>(?:19|20)\d\d[-_]\d\d) (?=(?:[-_]\d{4}[-_]\d\d)?_mosaic)
    |                                                                     # ASTER
    (?<=AST_L1[AT]_00\d) (?P<aster>\d{4}(?:19|20)\d\d) (?:\d{6})
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Sentinel-2 until 2016 says first when it was processed, and behind _V when it was taken, if at all.
_PROCESSED_FIRST = re.compile(r"S2[AB]_OPER_.*?(?:_V(?=\d{8}T)|$)")
_TAGS = (("IMAGERY", "ACQUISITIONDATETIME"), (None, "ACQUISITIONDATETIME"), (None, "TIFFTAG_DATETIME"))


class Dated(NamedTuple):
    """When a raster was taken, and what says so."""

    time: datetime  # UTC, without a zone
    source: str  # "name", "folder", "tag", "STAC item" or "table"


class DateTable:
    """When files were taken, UTC without a zone.

    A file is named by its path, by the end of it, by its name, or by its name without the suffix; the longest of these
    that the table has counts.
    """

    def __init__(self, dates: Mapping[str, datetime]):
        self._dates = {Path(name).as_posix(): time for name, time in dates.items()}
        self._has_named = False  # any file that was asked for

    @property
    def version(self) -> str:
        """What is another one if the table is."""
        return hashlib.sha256(repr(sorted(self._dates.items())).encode()).hexdigest()

    @classmethod
    def read(cls, path: str | Path) -> "DateTable":
        """Read a `.csv` with the columns `file` and `date`."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no {path}; expected a table .csv with the columns file and date.")
        dates: dict[str, datetime] = {}
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            if not {"file", "date"} <= set(reader.fieldnames or ()):
                raise ValueError(
                    f"{path} has the columns {reader.fieldnames}; expected file and date, as in x.tif,2019-03-02."
                )
            for number, row in enumerate(reader, start=2):
                name, time = row["file"].strip(), read_date(row["date"], f"{path}, line {number}")
                if dates.setdefault(name, time) != time:
                    raise ValueError(f"{path} has two dates for {name}: {dates[name]} and {time}. Keep one.")
        return cls(dates)

    def find(self, path: str | Path) -> datetime | None:
        """The date of a file, None if the table does not name it."""
        parts = Path(str(path)).parts
        ends = [Path(*parts[start:]) for start in range(len(parts))]
        names = [name for end in ends for name in (end.as_posix(), end.with_suffix("").as_posix())]
        found = next((self._dates[name] for name in names if name in self._dates), None)
        self._has_named |= found is not None
        return found

    def check_used(self, path: Any) -> None:
        """Raise a ValueError if the table, which was read from `path`, had none of the files that were asked for."""
        if not self._has_named:
            entry = f", such as {next(iter(self._dates))!r}," if self._dates else ""
            raise ValueError(
                f"--date_table {path}: none of its {len(self._dates)} entries{entry} is one of the files. Name a file "
                "by its path or the end of it, as in a/1.tif."
            )


def date_of(path: str | Path, table: DateTable | None = None) -> Dated:
    """When a raster was taken.

    A table that names it counts first. Else it is the first date of the calendar in the name of the file, which is
    that of acquisition in the names of all agencies; a number that is no date counts for nothing. Else it is the name
    of its folder, if that is a date and nothing else; else what the file's own tags say, `ACQUISITIONDATETIME` or
    `TIFFTAG_DATETIME`; else the `datetime` of a STAC item beside it.

    Raises:
        ValueError: If none of them says.
    """
    known = known_date(path, table)
    if known is None:
        raise ValueError(
            f"Nobody says when {path} was taken: neither its name (as in x_2019-03-02.tif) nor its tags nor a STAC "
            "item beside it. Put the date into the name, or give a table with the columns file and date: "
            "`--date_table dates.csv`."
        )
    return known


def known_date(path: str | Path, table: DateTable | None = None) -> Dated | None:
    """What `date_of` returns; None if nothing says it."""
    source = as_source(path)
    given = None if table is None else table.find(source)
    if given is not None:
        return Dated(given, "table")
    named = date_in_name(Path(str(source)).name)
    if named is not None:
        return Dated(named, "name")
    if isinstance(source, Path) and name_without_date(source.parent.name) == "":
        return Dated(date_in_name(source.parent.name), "folder")
    tagged = None if is_npy(source) or uses_pillow(source) else _date_in_tags(source)
    if tagged is not None:
        return Dated(tagged, "tag")
    if isinstance(source, Path):
        items = _items_beside(source.parent, source.parent.stat().st_mtime_ns)
        item = items.get(source.name) or items.get(source.stem)
        if item is not None:
            return Dated(item, "STAC item")
    return None


def match_dates(
    times: Sequence[datetime | None], paths: Sequence[Path | str], table: DateTable | None = None
) -> list[list[Path | str]]:
    """Which of some files go with each raster of a series: those of its time, else those of its day.

    One file goes with all rasters if nobody says when it was taken, or the raster is no series (None).

    Raises:
        ValueError: If one of several files has no date, or those of a day are of several times.
    """
    if not paths or (len(paths) == 1 and (None in times or known_date(paths[0], table) is None)):
        return [list(paths)] * len(times)
    if None in times:
        raise ValueError(f"{paths[0]} and {paths[1]} are masks of several dates of a raster that has none.")
    by_time: dict[datetime, list[Path | str]] = {}
    for path in paths:
        by_time.setdefault(date_of(path, table).time, []).append(path)
    matched = []
    for time in times:
        of_day = [several for other, several in by_time.items() if other.date() == time.date()]
        if time not in by_time and len(of_day) > 1:
            raise ValueError(
                f"{of_day[0][0]} and {of_day[1][0]} are of one day, and none has the time {time.time()} of the raster "
                "that they may belong to. Put the times into the names, as in x_20190302T105021.tif."
            )
        matched.append(by_time.get(time, next(iter(of_day), [])))
    return matched


def date_in_name(name: str) -> datetime | None:
    """The first date of the calendar in a file's name, UTC; of a monthly mosaic the first day. None if there is none.

    Example:
        >>> date_in_name("S2A_MSIL2A_20190302T105021_N0211_R051_T31UFR_20190302T135231.SAFE")
        datetime.datetime(2019, 3, 2, 10, 50, 21)
        >>> date_in_name("MOD09A1.A2019057.h18v04.061.2020288062301.hdf")
        datetime.datetime(2019, 2, 26, 0, 0)
    """
    found = _find_in_name(name)
    return found and found[0]


def name_without_date(name: str) -> str | None:
    """What is left of a name without the date of `date_in_name` and what joins it: `a_20190302_b` is `a_b`.

    None if there is no date.
    """
    found = _find_in_name(name)
    if found is None:
        return None
    before, behind = name[: found[1]].rstrip("-_. "), name[found[2] :].lstrip("-_. ")
    return "_".join(filter(None, [before, behind]))


def _find_in_name(name: str) -> tuple[datetime, int, int] | None:
    """The date in a name, and where it begins and ends there."""
    skipped = _PROCESSED_FIRST.match(name)
    for match in _DATE.finditer(name, 0 if skipped is None else skipped.end()):
        parts = match.groupdict()
        try:
            if parts["doy"]:
                time = datetime.strptime(parts["doy"], "%Y%j" if len(parts["doy"]) == 7 else "%Y%jT%H%M%S")
                if time.strftime("%Y%j") != parts["doy"][:7]:  # day 366 of another year
                    continue
            elif parts["mosaic"]:
                time = datetime.strptime(parts["mosaic"].replace("-", "_"), "%Y_%m")
            elif parts["aster"]:
                time = datetime.strptime(parts["aster"], "%m%d%Y")
            else:
                fields = ("year", "month", "day", "hour", "minute", "second")
                time = datetime(*(int(parts[field] or 0) for field in fields))
        except ValueError:  # 20190230 is no date
            continue
        return time, match.start(), match.end()
    return None


def _date_in_tags(source: str | Path) -> datetime | None:
    with open_dataset(source) as dataset:
        for domain, tag in _TAGS:
            # TIFF writes 2019:03:02 10:50:21. Some programs write zeros, or what is no date.
            text = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", dataset.tags(ns=domain).get(tag, ""))
            with contextlib.suppress(ValueError):
                return read_date(text, tag)
    return None


@functools.lru_cache(maxsize=64)
def _items_beside(folder: Path, changed: int) -> dict[str, datetime]:
    """The dates of the STAC items of a folder, which was `changed` then, by names of the files that they are about."""
    dates: dict[str, datetime] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            item = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if not isinstance(item, dict) or item.get("type") != "Feature" or "stac_version" not in item:
            continue
        properties = item.get("properties") or {}
        text = properties.get("datetime") or properties.get("start_datetime")
        if text:
            time = read_date(text, f"The datetime of {path}")
            hrefs = [str(asset.get("href", "")) for asset in (item.get("assets") or {}).values()]
            dates |= dict.fromkeys([path.stem, *(Path(href).name for href in hrefs)], time)
    return dates


def read_date(text: str, where: str) -> datetime:
    """A date of ISO 8601, UTC without a zone; ValueError that says where it stands."""
    try:
        return from_days(to_days(text.strip()))
    except ValueError as error:
        raise ValueError(f"{where} is {text!r}, which is no date; expected one such as 2019-03-02.") from error
