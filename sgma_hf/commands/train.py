"""`sgma-hf train`: train SGMA on a data set with nullable modality columns."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.commands.checkpoint_arguments import check_checkpoint
from sgma_hf.data.command_line import report_errors
from sgma_hf.data.whole_files import write_json
from sgma_hf.publishing.push import PUSH_ERRORS, explain_push_error
from sgma_hf.publishing.results import results_to_markdown
from sgma_hf.training.arguments import RunArguments, SgmaTrainingArguments


if TYPE_CHECKING:
    from sgma_hf.training.trainer import SgmaTrainer

# What `--help` shows; the others are for few runs, or named by the error that asks for them.
MAIN_ARGUMENTS = (
    "recipe",
    "dataset",
    "output_dir",
    "modalities",
    "backbone",
    "backbone_config",
    "encoder_groups",
    "model",
    "crop_size",
    "per_device_train_batch_size",
    "num_train_epochs",
    "learning_rate",
    "bf16",
    "validation_split",
    "resume_from_checkpoint",
)


@report_errors("sgma-hf train")
def main(argv: list[str] | None = None) -> int:
    """Train, save the model with its processor, and evaluate it; 1 after one line if the push to the Hub failed."""
    arguments, training_args = parse_arguments(argv)
    return _train(arguments, training_args, sys.argv[1:] if argv is None else argv)


def parse_arguments(argv: list[str] | None) -> tuple[RunArguments, SgmaTrainingArguments]:
    """Read the command line; a ValueError about values that contradict each other."""
    from sgma_hf.training.start import check_arguments

    parser = DataclassParser((RunArguments, SgmaTrainingArguments), prog="sgma-hf train", description=__doc__)
    with _preparing():
        arguments, training_args = parser.parse(argv, shown=MAIN_ARGUMENTS, section="train")
    check_arguments(arguments, training_args)
    if arguments.model is not None:
        check_checkpoint(arguments.model, of_arms=False)
    return arguments, training_args


def _train(arguments: RunArguments, training_args: SgmaTrainingArguments, argv: list[str]) -> int:
    from huggingface_hub.errors import HTTPError
    from torch import OutOfMemoryError
    from transformers import set_seed

    from sgma_hf.publishing.record import command_line
    from sgma_hf.training.start import start_training
    from sgma_hf.training.trainer import SgmaTrainer

    resume = _resume(training_args)
    if not resume:
        _check_output(training_args, overwrite=arguments.overwrite)
    set_seed(training_args.seed)
    with _preparing():
        start = start_training(arguments, training_args)
    if start.encoder is not None and training_args.process_index == 0:
        print(start.encoder)
    if start.validation_rows is None:
        training_args.eval_strategy = "no"
    try:
        with _preparing():
            trainer = SgmaTrainer(
                start.model,
                training_args,
                processing_class=start.processor,
                train_dataset=start.train_rows,
                eval_dataset=start.validation_rows,
            )
    except HTTPError as error:  # with `--push_to_hub` the repository is made before the training begins
        name = training_args.hub_model_id or Path(training_args.output_dir).name
        print(f"sgma-hf train: {explain_push_error(error, name)}", file=sys.stderr)
        return 1
    trainer.data_description = start.description
    trainer.command = command_line(["sgma-hf", "train", *argv])
    if arguments.overwrite and not resume:
        _remove_checkpoints(trainer)
    try:
        result = trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        return _say_how_to_go_on(trainer)
    except OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{reason} Choose a smaller `--crop_size`, or a smaller `--per_device_train_batch_size` with more "
            "`--gradient_accumulation_steps`."
        ) from error
    trainer.save_model(_internal_call=True)  # else it pushes, before there are scores for the card
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    if trainer.is_world_process_zero() and trainer.step_of_weights() < trainer.state.global_step:
        score = f"{training_args.metric_for_best_model} {trainer.state.best_metric:.4f}"
        print(f"the best checkpoint, of step {trainer.step_of_weights()}, is kept: {score}")
    if start.validation_rows is not None:
        results = trainer.score(start.validation_rows)
        if trainer.is_world_process_zero():
            write_json(Path(training_args.output_dir) / "validation_results.json", results)
            print(results_to_markdown(results))
    trainer.create_model_card()
    return _push(trainer) if training_args.push_to_hub else 0


@contextmanager
def _preparing() -> Iterator[None]:
    """Say in one line what libraries raise before the first step: of values of a wrong type, packages that lack."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"The weights that `--model` or `--backbone` names are damaged: {error}.") from error
    except (TypeError, RuntimeError, StrictDataclassError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _resume(training_args: SgmaTrainingArguments) -> str | bool | None:
    """`--resume_from_checkpoint true` is text on a command line."""
    resume = training_args.resume_from_checkpoint
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        return resume.lower() == "true"
    return resume


def _check_output(training_args: SgmaTrainingArguments, *, overwrite: bool) -> None:
    """Refuse a folder with the weights or the checkpoints of an earlier run, which would be lost or mixed up."""
    folder = Path(training_args.output_dir)
    found = sorted(path.name for pattern in ("checkpoint-*", "model*.safetensors") for path in folder.glob(pattern))
    if found and not overwrite:
        raise ValueError(
            f"`--output_dir` {str(folder)!r} holds an earlier run ({', '.join(found)}). Name another folder, go on "
            "with that run by `--resume_from_checkpoint true`, or replace it by `--overwrite true`."
        )


def _remove_checkpoints(trainer: "SgmaTrainer") -> None:
    """Remove an earlier run's, and its adapters: the newest of them would be taken for one of this run."""
    from sgma_hf.training.checkpoints import remove_checkpoint
    from sgma_hf.training.fine_tuning.weights import ADAPTER_FOLDER

    if trainer.is_world_process_zero():
        for folder in Path(trainer.args.output_dir).glob("checkpoint-*"):
            remove_checkpoint(folder)
        shutil.rmtree(Path(trainer.args.output_dir) / ADAPTER_FOLDER, ignore_errors=True)


def _say_how_to_go_on(trainer: "SgmaTrainer") -> int:
    from sgma_hf.training.checkpoints import last_complete_checkpoint

    if trainer.is_world_process_zero():
        last = last_complete_checkpoint(trainer.args.output_dir)
        if last is None:
            how = "no checkpoint was saved yet, so start it again"
        else:
            how = f"the same command with `--resume_from_checkpoint true` goes on from {last}"
        print(f"\nsgma-hf train: stopped at step {trainer.state.global_step}; {how}", file=sys.stderr)
    return 130


def _push(trainer: "SgmaTrainer") -> int:
    try:
        trainer.push_to_hub()
    except PUSH_ERRORS as error:
        name = trainer.hub_model_id
        print(f"sgma-hf train: {explain_push_error(error, name)}", file=sys.stderr)
        print(f"sgma-hf push-to-hub --model {trainer.args.output_dir} --repo_id {name}", file=sys.stderr)
        return 1
    return 0
