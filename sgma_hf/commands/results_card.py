"""`sgma-hf results-card`: write the results card of a data set from what `sgma-hf compare` measured."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from sgma_hf.comparison.report import readme_block, results_card, write_into_readme
from sgma_hf.comparison.run_records import read_rows


@dataclass
class ResultsCardArguments:
    """Arguments of `sgma-hf results-card`."""

    results: list[str] = field(metadata={"help": "Files of JSON lines by `sgma-hf compare`; later ones are newer."})
    output: str | None = field(default=None, metadata={"help": "Markdown file to write the card to."})
    dataset: str | None = field(
        default=None, metadata={"help": "Name of the data set, where the files hold runs of several."}
    )
    readme: str | None = field(
        default=None, metadata={"help": "README whose block between the marks of the comparison is replaced."}
    )


def main(argv: list[str] | None = None) -> int:
    """Write the card, the README's table, or both.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0; errors are raised.
    """
    parser = HfArgumentParser(ResultsCardArguments, prog="sgma-hf results-card", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    if args.output is None and args.readme is None:
        raise ValueError("Nothing to write: give `--output`, `--readme` or both.")
    absent = [path for path in args.results if not Path(path).is_file()]
    if absent:
        raise FileNotFoundError(f"There is no file {absent}; give those that `sgma-hf compare --output` wrote.")
    rows = [row for path in args.results for row in read_rows(path)]
    if args.dataset is not None:
        names = sorted({row["dataset"]["name"] for row in rows})
        rows = [row for row in rows if row["dataset"]["name"] == args.dataset]
        if not rows:
            raise ValueError(f"The results hold no run on {args.dataset!r}; they are of {names}.")
    if args.output is not None:
        card = results_card(rows)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(card, encoding="utf-8")
        print(f"{args.output}: {len(rows)} runs")
    if args.readme is not None:
        write_into_readme(args.readme, readme_block(rows))
        print(f"{args.readme}: {len(rows)} runs")
    return 0
