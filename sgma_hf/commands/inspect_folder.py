"""`sgma-hf inspect`: say what a folder of rasters holds, before it is converted.

    sgma-hf inspect scenes
    sgma-hf inspect scenes --json > scenes.json

Per modality: files, sizes, ground sampling, CRS, types, nodata, gaps and ranges; label values with their shares; what
does not pair, what cannot be read, and at the end the `sgma-hf convert-rasters` that fits, to be pasted.
"""

import argparse
import json
import sys
from pathlib import Path

from sgma_hf.data.command_line import Parser, report_errors


@report_errors("sgma-hf inspect")
def main(argv: list[str] | None = None) -> None:
    """Print the report."""
    parser = Parser(prog="sgma-hf inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="DIR", help="a folder per modality, or per scene")
    label = "folder or file stem of the labels, or a file of polygons (default: a usual name, as label or mask)"
    parser.add_argument("--label", help=label)
    parser.add_argument("--label_attribute", metavar="NAME", help="of the polygons, what says the class")
    parser.add_switch("--json", help="print the report as JSON")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)

    from sgma_hf.converters.folders.inspection import inspect_folder

    report = inspect_folder(arguments.source, label=arguments.label, attribute=arguments.label_attribute)
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.text())
