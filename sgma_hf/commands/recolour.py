"""`sgma-hf recolour`: give classes other colours, in a checkpoint for the maps to come, or in maps that are there.

    sgma-hf recolour runs/mine --classes '[{"name": "crop", "color": "#c00080"}]'
    sgma-hf recolour maps/a.tif maps/b.tif --classes classes.json

Classes that are not named keep theirs. Of a map, its styles, pictures and legend follow.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sgma_hf.commands.checkpoint_arguments import check_checkpoint
from sgma_hf.data.command_line import Parser, report_errors
from sgma_hf.data.whole_files import check_writable, write_json


@report_errors("sgma-hf recolour")
def main(argv: list[str] | None = None) -> None:
    """Change the colours, and say in which files."""
    parser = Parser(prog="sgma-hf recolour", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    targets = "folder of a checkpoint, or map that `sgma-hf predict` wrote"
    parser.add_argument("targets", type=Path, nargs="+", metavar="DIR_OR_MAP", help=targets)
    colors = 'a file of classes, or JSON as in [{"name": "road", "color": "#808080"}]'
    parser.add_argument("--classes", required=True, metavar="FILE_OR_JSON", help=colors)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    for target in args.targets:  # before any of them is changed
        _check(target, args.classes)
    for target in args.targets:
        for path in _recolour(target, args.classes):
            print(path)


def _check(target: Path, classes: str) -> None:
    from sgma_hf.prediction.map_files import plan_colors

    if not target.exists():
        raise FileNotFoundError(f"{target}: there is no such file or folder.")
    check_writable(target / "config.json" if target.is_dir() else target)
    if target.is_dir():
        check_checkpoint(str(target))
        _configuration(target, classes)
    else:
        plan_colors(target, classes)


def _recolour(target: Path, classes: str) -> list[Path]:
    from sgma_hf.prediction.map_files import recolor_map

    if not target.is_dir():
        return recolor_map(target, classes)
    write_json(target / "config.json", _configuration(target, classes))
    return [target / "config.json"]


def _configuration(folder: Path, classes: str) -> dict[str, Any]:
    """The configuration of a checkpoint, in which nothing but the colours is new."""
    from sgma_hf.visualization.palette import recolor

    content = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    names = [content["id2label"][index] for index in sorted(content["id2label"], key=int)]
    return content | {"palette": recolor(names, content.get("palette"), classes)}
