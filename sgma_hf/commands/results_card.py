"""`sgma-hf results-card`: what `sgma-hf compare` measured, as tables in Markdown, LaTeX or CSV, and as figures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.comparison.run_records import read_rows
from sgma_hf.data.command_line import did_you_mean, report_errors
from sgma_hf.data.whole_files import write_text


FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
DPI = 160


@dataclass
class ResultsCardArguments:
    """Arguments of `sgma-hf results-card`."""

    results: list[str] = field(metadata={"help": "Files of JSON lines by `sgma-hf compare`; later ones are newer."})
    output: str | None = field(
        default=None, metadata={"help": "File to write: .md for reading, .tex for a paper, .csv for calculating."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Name of the data set, where the files hold runs of several, or its folder, for --models."},
    )
    tables: list[str] | None = field(default=None, metadata={"help": "Tables to write, by name; default: all."})
    figures: str | None = field(default=None, metadata={"help": "Folder to draw figures into, as PNG (extra viz)."})
    models: str | None = field(
        default=None,
        metadata={"help": "Folder of `sgma-hf compare --keep_models`: draw predictions and features too."},
    )
    rows: list[str] | None = field(default=None, metadata={"help": "Rows to predict for --models; default: three."})
    device: str = field(default="cpu", metadata={"help": "Where the models run.", "choices": ["cpu", "cuda"]})


@report_errors("sgma-hf results-card")
def main(argv: list[str] | None = None) -> int:
    """Write the card; 0, or 2 after one line that says what was wrong."""
    parser = DataclassParser(ResultsCardArguments, prog="sgma-hf results-card", description=__doc__)
    (args,) = parser.parse(argv)
    absent = [path for path in args.results if not Path(path).is_file()]
    if absent:
        raise FileNotFoundError(f"There is no file {absent}; give those that `sgma-hf compare --output` wrote.")
    if args.output is None and args.figures is None:
        raise ValueError("Nothing is to be written; give a file by `--output`, a folder by `--figures`, or both.")
    if args.output is not None and Path(args.output).suffix not in FORMATS:
        raise ValueError(f"`--output` is {args.output!r}; expected a name that ends in {', '.join(FORMATS)}.")
    if args.models is not None and (args.figures is None or args.dataset is None):
        raise ValueError(
            "`--models` draws rows; give their folder by `--dataset`, and one for the pictures by `--figures`."
        )
    if args.rows is not None and args.models is None:
        raise ValueError("`--rows` are predicted by kept models; give their folder by `--models`.")

    from sgma_hf.comparison.card.report import make_card
    from sgma_hf.publishing.record import dataset_name

    rows = [row for path in args.results for row in read_rows(path)]
    if args.dataset is not None:
        name, names = dataset_name(args.dataset)[0], sorted({row["dataset"]["name"] for row in rows})
        if name not in names:
            hint = did_you_mean(name, names) or "."
            raise ValueError(f"The results hold no run on {name!r}{hint} They are of {', '.join(names)}.")
        rows = [row for row in rows if row["dataset"]["name"] == name]
    card = make_card(rows, names=args.tables or ())
    figures = {} if args.figures is None else _drawn(args, rows)
    if args.output is not None:
        write_text(args.output, getattr(card, FORMATS[Path(args.output).suffix])())
        print(f"{args.output}: {len(rows)} runs")
        for heading, tables in card.tables.items():
            for table in (table for table in tables if table.name == "added"):
                print(f"\n{table.title}{heading and f', {heading}'}\n{table.markdown()}\n")
    for name, figure in figures.items():
        path = Path(args.figures, f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
        print(path)
    return 0


def _drawn(args: ResultsCardArguments, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of each training by name; where there are several, they are numbered as they are in the card."""
    from sgma_hf.comparison.card.figures import figures_of
    from sgma_hf.comparison.card.model_figures import model_figures_of
    from sgma_hf.comparison.card.report import one_data_set

    experiments, figures = one_data_set(rows), {}
    for number, experiment in enumerate(experiments, 1):
        drawn = figures_of(experiment)
        if args.models is not None:
            options = {"row_ids": args.rows or (), "device": args.device}
            drawn |= model_figures_of(experiment, args.models, args.dataset, **options)
        prefix = f"{number}_" if len(experiments) > 1 else ""
        figures |= {f"{prefix}{name}": figure for name, figure in drawn.items()}
    return figures
