"""`sgma-hf plot-dynamics`: draw how each modality learned over a training run (extra `viz`)."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from sgma_hf.training.dynamics import read_learning_dynamics
from sgma_hf.visualization.charts import plot_learning_dynamics


@dataclass
class PlotDynamicsArguments:
    """Arguments of `sgma-hf plot-dynamics`."""

    run: str = field(metadata={"help": "The `--output_dir` of a training run; it may still be training."})
    out: str = field(metadata={"help": "File to draw to: .png, .pdf, .svg, ..."})
    title: str | None = field(default=None, metadata={"help": "Heading; default: the name of the run's folder."})
    dpi: int = field(default=160, metadata={"help": "Resolution of a .png, in pixels per inch."})


def main(argv: list[str] | None = None) -> int:
    """Draw the figure and say where it is.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0; errors are raised.
    """
    parser = HfArgumentParser(PlotDynamicsArguments, prog="sgma-hf plot-dynamics", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    record = read_learning_dynamics(args.run)
    title = Path(args.run).resolve().name if args.title is None else args.title
    figure = plot_learning_dynamics(record, title=title)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=args.dpi)
    print(f"{args.out}: {len(record['epochs'])} epochs, {len(record['evaluations'])} evaluations")
    return 0
