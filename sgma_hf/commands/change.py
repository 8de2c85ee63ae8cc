"""`sgma-hf change`: the areas that went from class to class between two maps of one place.

    sgma-hf change old.tif new.tif
    sgma-hf change old.tif new.tif --output change.json --table change.csv --map change.tif

Maps are GeoTIFFs of the same classes, as `sgma-hf predict` writes them. The new one is read on the grid of the old.
Where `--extras confidence robustness` lie beside them, it is said how much of the change may be no change of the
ground: where a map was not sure, and where one of them had a modality that the other had not.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sgma_hf.data.command_line import Parser, report_errors
from sgma_hf.data.whole_files import check_replaceable, check_writable, write_json, write_text
from sgma_hf.publishing.tables import markdown_table, rows_as_csv


def _parser() -> Parser:
    parser = Parser(prog="sgma-hf change", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("old", metavar="OLD.tif", help="the earlier map, whose grid counts")
    add("new", metavar="NEW.tif", help="the later map")
    add("--output", metavar="FILE.json", help="JSON file of all figures")
    add("--table", metavar="FILE.csv", help="CSV file, a row for each pair of classes")
    add("--map", metavar="FILE.tif", help="map of the changes; what may explain them beside it, FILE_reason.tif")
    uncertain = "probability of the class below which a map was not sure; default: 0.6"
    add("--min_confidence", type=float, default=0.6, metavar="SHARE", help=uncertain)
    return parser


@report_errors("sgma-hf change")
def main(argv: list[str] | None = None) -> None:
    """Compare the maps, write the files that are named, and print the table."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)

    from sgma_hf.evaluation.change import map_change
    from sgma_hf.rasters.scene import RasterInput

    inputs = [file for text in (args.old, args.new) for file in RasterInput.parse(text).files]
    outputs = [output for output in (args.map, args.output, args.table) if output is not None]
    for index, output in enumerate(outputs):
        check_replaceable(output, inputs)
        check_writable(output)
        if output in outputs[:index]:
            raise ValueError(f"{output} is named for two outputs. Choose another name for one of them.")
    found = map_change(args.old, args.new, output=args.map, min_confidence=args.min_confidence)
    if args.output is not None:
        write_json(args.output, found)
    if args.table is not None:
        write_text(args.table, rows_as_csv(list(found["transitions"][0]), found["transitions"]))
    print("\n".join([_matrix(found), "", *_sentences(found)]))


def _matrix(found: Mapping[str, Any]) -> str:
    """Area and share of each pair of classes that one of the maps has."""
    rows = {(row["from"], row["to"]): row for row in found["transitions"]}
    occurring = {name for pair, row in rows.items() if row["pixels"] for name in pair}
    names = [name for name in dict.fromkeys(name for name, _ in rows) if name in occurring]
    unit = "pixels" if found["share_of"] == "pixels" else "ha"
    lines = [[f"**{old}**", *(_amount(rows[old, new], " ") for new in names)] for old in names]
    return markdown_table([f"from, to ({unit}, share of what both know)", *names], lines)


def _amount(row: Mapping[str, Any], between: str) -> str:
    amount = f"{row['pixels']}" if row["area_ha"] is None else f"{row['area_ha']:.4g}"
    share = "" if row["share"] is None else f"{between}({row['share']:.2%})"
    return f"{amount}{share}"


def _sentences(found: Mapping[str, Any]) -> Sequence[str]:
    """What changed, and what may explain it."""
    changed, unchanged = found["changed"], found["unchanged"]
    unit = "pixels" if found["share_of"] == "pixels" else "ha"
    lines = [f"Changed: {_amount(changed, f' {unit} ')} of what both maps know."]
    reasons = {"uncertain": f"a map's confidence was below {found['min_confidence']:g}"}
    for key in changed:
        kind, _, name = key.partition("_")
        if kind == "lost":
            reasons[key] = f"the old map relied on {name}, of which the new one took nothing"
        if kind == "gained":
            reasons[key] = f"the new map relied on {name}, of which the old one took nothing"
    for key, text in reasons.items():
        if changed.get(key) is not None and (changed[key] or unchanged[key]):
            still = "" if unchanged[key] is None else f", and in {unchanged[key]:.1%} of what did not change"
            lines.append(f"In {changed[key]:.1%} of it {text}{still}.")
    if changed.get("unexplained") is not None:
        lines.append(f"Nothing of that explains {changed['unexplained']:.1%} of it.")
    absent = [name for name in ("confidence", "robustness") if name not in found["known"]]
    if absent:
        lines.append(
            f"Not known: {' and '.join(absent)}. Predict the maps with `--extras confidence robustness` to see what "
            "may explain a change."
        )
    return lines
