"""`sgma-hf push-to-hub`: upload a checkpoint with its processor, code and card."""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser

import sgma_hf  # noqa: F401  registers the model with transformers' Auto classes
from sgma_hf.model.saving_sgma import push_folder
from sgma_hf.publishing.model_card import MARKER, build_model_card
from sgma_hf.publishing.push import PUSH_ERRORS, explain_push_error
from sgma_hf.publishing.record import RECORD_FILE, TrainingRecord, dataset_name
from sgma_hf.publishing.weights_digest import DIGEST_KEY, checkpoint_digest


@dataclass
class PushToHubArguments:
    """Arguments of `sgma-hf push-to-hub`."""

    model: str = field(metadata={"help": "Folder of a checkpoint, with its processor."})
    repo_id: str = field(metadata={"help": "Repository on the Hub, organisation/name; made if it is not there."})
    public: bool = field(default=False, metadata={"help": "Make a public repository if there is none yet."})
    revision: str | None = field(default=None, metadata={"help": "Branch; made if it is not there."})
    commit_message: str = field(default="Upload model", metadata={"help": "First line of the commit."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Split larger weights into files of this size."})
    evaluation: str | None = field(
        default=None,
        metadata={"help": "Scores for the card: what `sgma-hf evaluate` wrote for these weights."},
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, for instance cc-by-4.0."})


def main(argv: list[str] | None = None) -> int:
    """Load the checkpoint, write its card, and push all in one commit.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0, or 1 after one line that says what was wrong.
    """
    parser = HfArgumentParser(PushToHubArguments, prog="sgma-hf push-to-hub", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    folder = Path(args.model)
    if not folder.is_dir():
        print(f"sgma-hf push-to-hub: --model {args.model} is no folder of a checkpoint", file=sys.stderr)
        return 1
    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype="auto")
        record = _record(folder, args.evaluation)
        with tempfile.TemporaryDirectory() as staging:
            model.save_pretrained(staging, max_shard_size=args.max_shard_size)
            processor.save_pretrained(staging)
            record.save(staging)
            written = folder / "README.md"
            if written.is_file() and MARKER not in written.read_text(encoding="utf-8"):
                card = written.read_text(encoding="utf-8")
            else:
                card = str(
                    build_model_card(model.config, processor, record, repo_id=args.repo_id, license=args.license)
                )
            (Path(staging) / "README.md").write_text(card, encoding="utf-8")
            commit = _push(staging, args)
    except (ValueError, OSError) as error:
        print(f"sgma-hf push-to-hub: {error}", file=sys.stderr)
        return 1
    if commit is None:
        return 1
    print(commit)
    return 0


def _push(staging: str, args: PushToHubArguments) -> str | None:
    """Address of the commit, or None after one line."""
    try:
        return push_folder(
            staging,
            args.repo_id,
            private=not args.public,
            revision=args.revision,
            commit_message=args.commit_message,
        ).commit_url
    except PUSH_ERRORS as error:
        print(f"sgma-hf push-to-hub: {explain_push_error(error, args.repo_id)}", file=sys.stderr)
        return None


def _record(folder: Path, evaluation: str | None) -> TrainingRecord:
    """What the checkpoint's training recorded, with the scores of a file if one is given."""
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
    results = json.loads(Path(evaluation).read_text(encoding="utf-8"))
    if "combinations" not in results:
        raise ValueError(f"--evaluation {evaluation} is not what `sgma-hf evaluate` writes.")
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
