"""`sgma-hf plot-dynamics`: draw how each modality learned over a training run (extra `viz`)."""

from pathlib import Path

from sgma_hf.data.command_line import Parser, report_errors


def _parser() -> Parser:
    parser = Parser(prog="sgma-hf plot-dynamics", description=__doc__)
    add = parser.add_argument
    add("--run", required=True, metavar="DIR", help="the --output_dir of a training run; it may still be training")
    add(
        "--output",
        required=True,
        metavar="FILE",
        help="file to draw to: .png (also without an ending), .pdf, .svg, ...",
        former=("--out",),
    )
    add("--title", help="heading; default: the name of the run's folder")
    add("--dpi", type=int, default=160, help="resolution of a .png, in pixels per inch; default: 160")
    return parser


@report_errors("sgma-hf plot-dynamics")
def main(argv: list[str] | None = None) -> None:
    """Draw the figure and say where it is."""
    args = _parser().parse_args(argv)
    if not Path(args.run).is_dir():
        raise FileNotFoundError(f"--run {args.run} is no folder of a training run")

    from sgma_hf.training.dynamics import read_learning_dynamics
    from sgma_hf.visualization.charts import plot_learning_dynamics

    record = read_learning_dynamics(args.run)
    title = Path(args.run).resolve().name if args.title is None else args.title
    figure = plot_learning_dynamics(record, title=title)
    output = Path(args.output)
    output = output if output.suffix else output.with_name(f"{output.name}.png")  # as matplotlib does without a word
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=args.dpi)
    print(f"{output}: {len(record['epochs'])} epochs, {len(record['evaluations'])} evaluations")
