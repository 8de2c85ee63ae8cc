"""`sgma-hf evaluate`: score a checkpoint on every non-empty combination of its modalities.

Rows of a dataset are scored by the arguments below; one labelled scene, or a map, by those that
`sgma-hf evaluate --label FILE --help` lists.
"""

import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation

import sgma_hf  # noqa: F401  registers the model with transformers' Auto classes
from sgma_hf.commands import evaluate_scene
from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.commands.checkpoint_arguments import choose_device, load_processor
from sgma_hf.data.command_line import check_folder_or_id, report_errors
from sgma_hf.data.metadata import DatasetMetadata, check_meaning
from sgma_hf.data.rows import load_rows, with_modality_columns
from sgma_hf.evaluation.agreement_scores import evaluate_agreement
from sgma_hf.evaluation.combinations import evaluate_modality_combinations
from sgma_hf.publishing.results import results_to_markdown, save_results
from sgma_hf.publishing.weights_digest import DIGEST_KEY, checkpoint_digest


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class EvaluateArguments:
    """Arguments of `sgma-hf evaluate`."""

    model: str = field(metadata={"help": "Checkpoint: a folder, or an id on the Hub."})
    dataset: str = field(metadata={"help": "Rows with labels: a folder of a converter, or an id on the Hub."})
    split: str = field(metadata={"help": "Split of the dataset, for instance validation."})
    output: str = field(metadata={"help": "JSON file to write the results to."})
    window_size: int | None = field(
        default=None,
        metadata={"help": "Side of the windows that larger rows are cut into; default: the size trained on; 0: none."},
    )
    batch_size: int = field(default=8, metadata={"help": "Rows per forward pass, at most."})
    missing: str = field(
        default="absent",
        metadata={
            "choices": ["absent", "zero"],
            "help": "What the model sees of a modality that is left out: nothing, or zeros after normalisation.",
        },
    )
    scored_classes: str = field(
        default="union",
        metadata={
            "choices": ["union", "truth"],
            "help": "Classes that count in the means: those labelled or predicted anywhere, or those labelled.",
        },
    )
    agreement: bool = field(
        default=False,
        metadata={
            "help": "Also say how well each modality alone agrees with the others here: the yardstick for the maps of "
            "`sgma-hf predict --extras agreement`. It takes a second pass."
        },
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, cuda:1, ...; CUDA where there is some."})
    dtype: str = field(default="float32", metadata={"choices": list(DTYPES), "help": "Type of the weights."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read rows; 0 reads in this one."})


@report_errors("sgma-hf evaluate", also=(TypeError,))
def main(argv: list[str] | None = None) -> None:
    """Evaluate, write the JSON file and print the table.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    flags = {argument.partition("=")[0] for argument in argv}
    if "--label" in flags:
        evaluate_scene.main(argv)
        return
    parser = DataclassParser(EvaluateArguments, prog="sgma-hf evaluate", description=__doc__, allow_abbrev=False)
    parser.refuse_unknown_flags(argv)
    if not flags & {"--dataset", "--help", "-h"}:
        parser.error("nothing to score: give rows by `--dataset`, or a scene by `--label` and its rasters")
    (args,) = parser.parse(argv)
    results = _score_rows(args)
    save_results(results, args.output)
    print(results_to_markdown(results))


def _score_rows(args: EvaluateArguments) -> dict[str, Any]:
    check_folder_or_id(args.dataset, "--dataset")
    device = choose_device(args.device)
    processor = load_processor(args.model)
    rows = load_rows(args.dataset, args.split)
    rows = with_modality_columns(rows, processor.modalities)
    check_meaning(DatasetMetadata.load(args.dataset), AutoConfig.from_pretrained(args.model), processor)
    model = AutoModelForSemanticSegmentation.from_pretrained(args.model, dtype=DTYPES[args.dtype]).to(device)
    reading = {
        "window_size": (model.config.tile_size if args.window_size is None else args.window_size) or None,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "progress_bar": True,
    }
    agreement = {"agreement": evaluate_agreement(model, processor, rows, **reading)} if args.agreement else {}
    results = evaluate_modality_combinations(
        model, processor, rows, missing=args.missing, scored_classes=args.scored_classes, **reading
    )
    source = {
        "model": args.model,
        DIGEST_KEY: checkpoint_digest(args.model),
        "dataset": args.dataset,
        "split": args.split,
        "dtype": args.dtype,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    return source | results | agreement
