"""`sgma-hf results-card`: write what `sgma-hf compare` measured as tables: Markdown, LaTeX or CSV."""

from dataclasses import dataclass, field
from pathlib import Path

from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.comparison.run_records import read_rows
from sgma_hf.data.command_line import did_you_mean, report_errors
from sgma_hf.data.whole_files import write_text


FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv"}


@dataclass
class ResultsCardArguments:
    """Arguments of `sgma-hf results-card`."""

    results: list[str] = field(metadata={"help": "Files of JSON lines by `sgma-hf compare`; later ones are newer."})
    output: str = field(metadata={"help": "File to write: .md for reading, .tex for a paper, .csv for calculating."})
    dataset: str | None = field(
        default=None, metadata={"help": "Name of the data set, where the files hold runs of several."}
    )
    tables: list[str] | None = field(default=None, metadata={"help": "Tables to write, by name; default: all."})


@report_errors("sgma-hf results-card")
def main(argv: list[str] | None = None) -> int:
    """Write the card; 0, or 2 after one line that says what was wrong."""
    parser = DataclassParser(ResultsCardArguments, prog="sgma-hf results-card", description=__doc__)
    (args,) = parser.parse(argv)
    absent = [path for path in args.results if not Path(path).is_file()]
    if absent:
        raise FileNotFoundError(f"There is no file {absent}; give those that `sgma-hf compare --output` wrote.")
    if Path(args.output).suffix not in FORMATS:
        raise ValueError(f"`--output` is {args.output!r}; expected a name that ends in {', '.join(FORMATS)}.")

    from sgma_hf.comparison.card.report import make_card

    rows = [row for path in args.results for row in read_rows(path)]
    if args.dataset is not None:
        names = sorted({row["dataset"]["name"] for row in rows})
        if args.dataset not in names:
            hint = did_you_mean(args.dataset, names) or "."
            raise ValueError(f"The results hold no run on {args.dataset!r}{hint} They are of {', '.join(names)}.")
        rows = [row for row in rows if row["dataset"]["name"] == args.dataset]
    card = make_card(rows, names=args.tables or ())
    write_text(args.output, getattr(card, FORMATS[Path(args.output).suffix])())
    print(f"{args.output}: {len(rows)} runs")
    return 0
