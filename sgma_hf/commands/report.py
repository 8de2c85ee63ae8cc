"""`sgma-hf report`: a folder of maps as one page of HTML, which opens anywhere and needs nothing beside it.

sgma-hf report --maps maps/ --output report.html
"""

from pathlib import Path

from sgma_hf.data.command_line import Parser, report_errors
from sgma_hf.data.whole_files import check_replaceable, check_writable, write_text


MEGABYTE = 1_000_000


@report_errors("sgma-hf report")
def main(argv: list[str] | None = None) -> None:
    """Read the maps, write the page and say where it is."""
    parser = Parser(prog="sgma-hf report", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--maps", required=True, metavar="DIR", help="folder that `sgma-hf predict` wrote maps to")
    add("--output", required=True, metavar="FILE", help="page to write: .html")
    add("--evaluation", metavar="FILE", help="scores to show, the JSON file of `sgma-hf evaluate`")
    add("--title", help="heading of the page; default: the folder's name")
    args = parser.parse_args(argv)
    maps, output = Path(args.maps), Path(args.output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`--output` is {args.output!r}; expected a name that ends in .html.")
    check_replaceable(output)
    check_writable(output)

    from sgma_hf.prediction.report.maps_page import maps_page
    from sgma_hf.prediction.report.shown_maps import read_maps
    from sgma_hf.publishing.results import read_results

    results = None if args.evaluation is None else read_results(args.evaluation)
    found = read_maps(maps)
    write_text(output, maps_page(found, args.title or f"Maps in {maps.resolve().name}", results))
    print(f"{output}: {len(found.maps)} scenes, {output.stat().st_size / MEGABYTE:.1f} MB")
