"""`sgma-hf evaluate`: score a checkpoint on every non-empty combination of its modalities.

Rows of a dataset are scored by the arguments below; one labelled scene, or a map, by those that
`sgma-hf evaluate --label FILE --help` lists.
"""

import argparse
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sgma_hf.commands import evaluate_scene
from sgma_hf.commands.checkpoint_arguments import (
    add_device,
    add_score_classes,
    add_turns,
    check_checkpoint,
    choose_device,
    choose_dtype,
    load_model,
)
from sgma_hf.data.command_line import Parser, check_folder_or_id, report_errors
from sgma_hf.data.whole_files import check_replaceable, check_writable, write_json
from sgma_hf.publishing.results import results_to_markdown


def row_parser() -> Parser:
    """The arguments that score rows of a data set."""
    parser = Parser(prog="sgma-hf evaluate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint: a folder, or an id on the Hub")
    add("--dataset", required=True, help="rows with labels: a folder of a converter, or an id on the Hub")
    add("--split", required=True, help="split of the dataset, for instance validation")
    labels = "column of the labels to score by, for instance scoring_label; default: label"
    add("--label_column", default="label", metavar="NAME", help=labels)
    add("--output", required=True, help="JSON file to write the results to")
    windows = "side of the windows that larger rows are cut into; default: the size trained on; 0: none"
    add("--tile_size", type=int, metavar="PIXELS", help=windows, former=("--window_size",))
    add("--stride", type=int, metavar="PIXELS", help="from window to window, which are blended; default: no overlap")
    add_turns(parser)
    add("--batch_size", type=int, default=8, help="windows per forward pass, at most; default: 8")
    shown = "what the model sees of a modality that is left out: nothing (default), or zeros after normalisation"
    add("--missing", choices=["absent", "zero"], default="absent", help=shown)
    add_score_classes(parser)
    protocols = (
        "also score the damaged inputs of arXiv:2503.18445: entirely missing, randomly missing values, noise; with "
        "--missing zero as there"
    )
    add("--protocol", nargs="+", choices=["emm", "rmm", "nm"], default=[], help=protocols)
    add("--seed", type=int, default=0, help="what --protocol and --dates draw depends on it; default: 0")
    shares = "also score series of which a share of the dates is there: all, half, quarter, or numbers up to 1"
    add("--dates", nargs="+", metavar="SHARE", default=[], help=f"{shares}; five draws for each row")
    add("--before", nargs="+", metavar="DATE", default=[], help="also score the dates before each of these days")
    gap = "also score without the dates from a day on until before another; can be repeated"
    add("--gap", nargs=2, action="append", metavar=("FROM", "TO"), default=[], help=gap)
    add("--plot", metavar="FILE", help="draw the scores over the days of --before, with the extra `viz`")
    agreement = (
        "also say how well each modality alone agrees with the others here: the yardstick for the maps of "
        "`sgma-hf predict --extras agreement`; it takes a second pass"
    )
    parser.add_switch("--agreement", help=agreement)
    calibration = (
        "also say whether confidences are right as often as they say; fit: choose the temperature that makes them so "
        "on these rows, not those trained on, and save it in the checkpoint for `predict` and `evaluate`"
    )
    add("--calibration", choices=["measure", "fit"], help=calibration)
    parser.add_switch("--allow_other_scale", help="score although the rows are far from what was trained on")
    add_device(parser)
    add("--dtype", choices=["float32", "float16", "bfloat16"], help=argparse.SUPPRESS)  # what it was called before
    add("--num_workers", type=int, default=0, help="processes that read rows; 0, the default, reads in this one")
    return parser


@report_errors("sgma-hf evaluate", on_stop="nothing was written, and the same command starts anew", also=(TypeError,))
def main(argv: list[str] | None = None) -> None:
    """Evaluate, write the JSON file and print the table."""
    argv = sys.argv[1:] if argv is None else argv
    flags = {argument.partition("=")[0] for argument in argv}
    if "--label" in flags:
        evaluate_scene.main(argv)
        return
    parser = row_parser()
    if not flags & {"--model", "--map"}:  # with these, a flag that is unknown may be a scene's
        parser.refuse_unknown_flags(argv)
    if not flags & {"--dataset", "--help", "-h"}:
        parser.error("nothing to score: give rows by `--dataset`, or a scene by `--label` and its rasters")
    args = parser.parse_args(argv)
    if args.dtype is not None and (args.bf16 or args.fp16):
        parser.error("`--dtype`, `--bf16` and `--fp16` exclude each other; give one of them")
    if args.protocol and (args.stride is not None or args.tta is not None):
        parser.error("`--protocol` takes neither `--stride` nor `--tta`")
    if args.calibration == "fit" and not Path(args.model).is_dir():
        parser.error(f"`--calibration fit` writes into the checkpoint; {args.model!r} is no folder, download it first")
    leaves_dates_out = args.dates or args.before or args.gap
    if leaves_dates_out and (args.protocol or args.stride is not None or args.missing == "zero"):
        parser.error("`--dates`, `--before` and `--gap` take neither `--protocol`, `--stride` nor `--missing zero`")
    if args.plot and not args.before:
        parser.error("`--plot` draws the scores over the days of `--before`; give some")
    if args.plot:
        evaluate_scene.check_plot(parser, args.plot)
    args.dtype = args.dtype or choose_dtype(parser, args)
    check_folder_or_id(args.dataset, "--dataset")
    check_checkpoint(args.model)
    if args.calibration == "fit":
        check_writable(Path(args.model) / "config.json")
    if args.plot:
        from sgma_hf.visualization.charts import plot_season
        from sgma_hf.visualization.palette import require_matplotlib

        require_matplotlib()
    results = _score_rows(args)
    write_json(args.output, results)
    if args.calibration == "fit":
        from sgma_hf.evaluation.trust.calibration import save_temperature

        save_temperature(args.model, results["calibration"]["temperatures"][-1])
    if args.plot:
        plot_season(results).savefig(args.plot, dpi=150)
    print(results_to_markdown(results))


def _score_rows(args: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoConfig, AutoImageProcessor

    from sgma_hf.data.metadata import DatasetMetadata, check_meaning
    from sgma_hf.data.rows import load_rows, with_label_column, with_modality_columns
    from sgma_hf.data.value_scale import rows_on_another_scale
    from sgma_hf.evaluation.agreement_scores import evaluate_agreement
    from sgma_hf.evaluation.combinations import evaluate_modality_combinations
    from sgma_hf.evaluation.metrics import check_scored_classes
    from sgma_hf.evaluation.over_time.dates import date_grid
    from sgma_hf.evaluation.prepared_rows import check_windows
    from sgma_hf.evaluation.protocols import evaluate_protocols
    from sgma_hf.publishing.weights_digest import DIGEST_KEY, checkpoint_digest

    for path in (args.output, args.plot) if args.plot else (args.output,):
        check_replaceable(path)
        check_writable(path)
    grid = date_grid(args.dates, args.before, args.gap, seed=args.seed)
    device = choose_device(args.device)
    processor = AutoImageProcessor.from_pretrained(args.model)
    rows = load_rows(args.dataset, args.split)
    rows = with_modality_columns(
        with_label_column(rows, args.label_column, processor.modalities), processor.modalities
    )
    config = AutoConfig.from_pretrained(args.model)
    check_scored_classes(args.score_classes, config.class_names)
    window_size = (config.tile_size if args.tile_size is None else args.tile_size) or None
    check_windows(window_size, args.stride)
    metadata = DatasetMetadata.load(args.dataset)
    check_meaning(metadata, config, processor)
    problem = None if args.allow_other_scale else rows_on_another_scale(processor, rows, config.tile_size)
    if problem is not None:
        raise ValueError(problem)
    model = load_model(args.model, dtype=args.dtype, device=device)
    reading = {
        "window_size": window_size,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "progress_bar": True,
    }
    dates = grid if grid.conditions else None
    evaluate = partial(evaluate_modality_combinations, stride=args.stride, tta=args.tta, dates=dates)
    if args.protocol:
        evaluate = partial(evaluate_protocols, protocols=args.protocol, seed=args.seed)
    # First, as it refuses rows that conditions of dates do not fit.
    results = evaluate(model, processor, rows, missing=args.missing, scored_classes=args.score_classes, **reading)
    if args.agreement:
        results["agreement"] = evaluate_agreement(model, processor, rows, **reading)
    if args.calibration:
        results["calibration"] = _calibration(args.calibration, model, processor, rows, reading)
    source = {
        "model": args.model,
        DIGEST_KEY: checkpoint_digest(args.model),
        "dataset": args.dataset,
        "split": args.split,
        "label_column": args.label_column,
        "split_note": metadata and metadata.note_on(args.split),
        "chosen_by": _chosen_by(args),
        "dtype": args.dtype,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    return source | results


def _calibration(how: str, model: Any, processor: Any, rows: Any, reading: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate_calibration` counts, at a temperature that was fitted on the same rows or is there."""
    from sgma_hf.evaluation.trust.calibration import evaluate_calibration, fit_temperature

    if how == "fit":
        model.config.temperature = fit_temperature(model, processor, rows, **reading)
    return evaluate_calibration(model, processor, rows, **reading) | {"fitted_on_these_rows": how == "fit"}


def _chosen_by(args: argparse.Namespace) -> str | None:
    """The score by which these very rows chose the checkpoint, as its training record says."""
    from transformers.utils import cached_file

    from sgma_hf.publishing.record import RECORD_FILE, TrainingRecord

    path = cached_file(args.model, RECORD_FILE, _raise_exceptions_for_missing_entries=False)
    record = None if path is None else TrainingRecord.load(Path(path).parent)
    return record and record.chosen_by(args.dataset, args.split)
