"""`sgma-hf results-card`: what `sgma-hf compare` measured, as tables in Markdown, LaTeX or CSV, and as figures."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.comparison.run_records import read_rows
from sgma_hf.data.command_line import did_you_mean, report_errors
from sgma_hf.data.whole_files import write_text


FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv"}


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
    from sgma_hf.visualization.palette import require_matplotlib

    if args.figures is not None:
        require_matplotlib()  # before anything is written
    rows = [row for path in args.results for row in read_rows(path)]
    if args.dataset is not None:
        name, names = dataset_name(args.dataset)[0], sorted({row["dataset"]["name"] for row in rows})
        if name not in names:
            hint = did_you_mean(name, names) or "."
            raise ValueError(f"The results hold no run on {name!r}{hint} They are of {', '.join(names)}.")
        rows = [row for row in rows if row["dataset"]["name"] == name]
    if args.output is not None:
        card = make_card(rows, names=args.tables or ())
        write_text(args.output, getattr(card, FORMATS[Path(args.output).suffix])())
        print(f"{args.output}: {len(rows)} runs")
    if args.figures is not None:
        for path in _draw(args, rows):
            print(path)
    return 0


def _draw(args: ResultsCardArguments, rows: list[dict[str, Any]]) -> Iterator[Path]:
    """Draw the figures of each training; where there are several, their files are numbered as they are in the card."""
    from sgma_hf.comparison.card.figures import figures_of, save_figures
    from sgma_hf.comparison.card.report import one_data_set

    experiments = one_data_set(rows)
    for number, experiment in enumerate(experiments, 1):
        prefix = f"{number}_" if len(experiments) > 1 else ""
        yield from save_figures(figures_of(experiment), args.figures, prefix)
        if args.models is not None:
            from sgma_hf.comparison.card.model_figures import model_figures_of

            drawn = model_figures_of(
                experiment, args.models, args.dataset, row_ids=args.rows or (), device=args.device
            )
            yield from save_figures(drawn, args.figures, prefix)
