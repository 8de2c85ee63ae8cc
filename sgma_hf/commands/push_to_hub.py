"""`sgma-hf push-to-hub`: upload a checkpoint with its processor, code and card, in one commit."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from sgma_hf.commands.checkpoint_arguments import check_checkpoint, load_model
from sgma_hf.data.command_line import Parser, report_errors


def _parser() -> Parser:
    parser = Parser(prog="sgma-hf push-to-hub", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="folder of a checkpoint, with its processor")
    add("--repo_id", required=True, metavar="ORG/NAME", help="repository on the Hub; made if it is not there")
    parser.add_switch("--public", help="make a public repository if there is none yet")
    add("--revision", metavar="BRANCH", help="branch; made if it is not there")
    add("--commit_message", default="Upload model", help="first line of the commit")
    add("--max_shard_size", default="5GB", help="split larger weights into files of this size; default: 5GB")
    add("--evaluation", metavar="FILE", help="scores for the card: what `sgma-hf evaluate` wrote for these weights")
    add("--license", help="licence of the weights, for instance cc-by-4.0")
    return parser


@report_errors("sgma-hf push-to-hub")
def main(argv: list[str] | None = None) -> int:
    """Load the checkpoint, write its card, and push all in one commit; 1 after one line if the push failed."""
    args = _parser().parse_args(argv)
    folder = Path(args.model)
    if not folder.is_dir():
        raise FileNotFoundError(f"--model {args.model} is no folder of a checkpoint")
    check_checkpoint(args.model, of_arms=False)

    from transformers import AutoImageProcessor

    from sgma_hf.model.saving_sgma import push_folder
    from sgma_hf.publishing.model_card import MARKER, build_model_card
    from sgma_hf.publishing.push import PUSH_ERRORS, explain_push_error
    from sgma_hf.training.fine_tuning.weights import copy_adapter

    processor = AutoImageProcessor.from_pretrained(folder)
    model = load_model(str(folder), dtype="auto", device="cpu")
    record = record_with_scores(folder, args.evaluation)
    written = folder / "README.md"
    card = written.read_text(encoding="utf-8") if written.is_file() else ""
    if not card or MARKER in card:  # else somebody has rewritten it
        card = str(build_model_card(model.config, processor, record, repo_id=args.repo_id, license=args.license))
    with tempfile.TemporaryDirectory() as staging:
        model.save_pretrained(staging, max_shard_size=args.max_shard_size)
        processor.save_pretrained(staging)
        record.save(staging)
        copy_adapter(folder, staging)
        Path(staging, "README.md").write_text(card, encoding="utf-8")
        options = {"private": not args.public, "revision": args.revision, "commit_message": args.commit_message}
        try:
            print(push_folder(staging, args.repo_id, **options).commit_url)
        except PUSH_ERRORS as error:
            print(f"sgma-hf push-to-hub: {explain_push_error(error, args.repo_id)}", file=sys.stderr)
            return 1
    return 0


def record_with_scores(folder: Path, evaluation: str | None) -> Any:
    """What the checkpoint's training recorded, with the scores of a file if one is given."""
    from sgma_hf.publishing.record import RECORD_FILE, TrainingRecord, dataset_name
    from sgma_hf.publishing.results import read_results
    from sgma_hf.publishing.weights_digest import DIGEST_KEY, checkpoint_digest

    record = TrainingRecord.load(folder) or TrainingRecord()
    digest = checkpoint_digest(folder)
    if evaluation is None:
        if record.evaluation is not None and record.evaluation.get(DIGEST_KEY) != digest:
            record.evaluation = None
            print(
                f"sgma-hf push-to-hub: the scores in {folder / RECORD_FILE} are of other weights, or do not say of "
                "which, and are left out. Evaluate this checkpoint and give the file by --evaluation.",
                file=sys.stderr,
            )
        return record
    results = read_results(evaluation)
    if "label" in results:
        raise ValueError(
            f"--evaluation {evaluation} has the scores of one scene, by `--label`; a card states those of a data "
            "set: `sgma-hf evaluate --dataset DIR --split NAME`."
        )
    if results.get(DIGEST_KEY) != digest:
        reason = "of other weights than those" if DIGEST_KEY in results else f"without the `{DIGEST_KEY}` of those"
        raise ValueError(
            f"--evaluation {evaluation} has scores {reason} in {str(folder)!r}; a card states only what was measured "
            "on its own weights. Evaluate this checkpoint."
        )
    results["dataset"], _ = dataset_name(results.get("dataset"))
    record.evaluation = {key: value for key, value in results.items() if key != "model"}
    return record
