"""The part of training that saves and pushes: complete repositories, no pickled arguments, a card from the run."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from enum import Enum
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi, run_as_future
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy, has_length
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..model.saving_sgma import push_folder
from ..publishing.model_card import MARKER, build_model_card
from ..publishing.push import PUSH_ERRORS, explain_push_error
from ..publishing.record import (
    RECORDED_ARGUMENTS,
    DataDescription,
    TrainingRecord,
    command_line,
    dataset_name,
    hardware_name,
    package_commit,
    package_versions,
)
from ..publishing.weights_digest import DIGEST_KEY, weights_digest


logger = logging.get_logger(__name__)

# What a model's repository holds, beside the code that `config.json` names; whatever else lies in the output folder
# stays at home.
_PUBLISHED = (
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "*_sgma.py",
    "training_record.json",
    "*_results.json",
    "adapter/*",
    "README.md",
)


class HubTrainer(Trainer):
    """Trainer whose every push leaves a repository that loads, and whose model card comes from the run."""

    def __init__(self, *args, **kwargs):
        self.data_description = DataDescription()  # for the card; what is None is taken from rows that know it
        self.command: str | None = None  # of the run, for the card; None is that of the process
        self._evaluation: tuple[int, dict[str, Any]] | None = None
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository as `Trainer` does; a ValueError if a private one was asked for and it is public."""
        super().init_hf_repo(token=token, private=private)
        private = self.args.hub_private_repo if private is None else private
        if private and self.is_world_process_zero():
            api = HfApi(token=self.args.hub_token if token is None else token)
            if not api.repo_info(self.hub_model_id, repo_type="model").private:
                raise ValueError(
                    f"The repository {self.hub_model_id} is public, and a private one was asked for; nothing was "
                    "uploaded. Leave `hub_private_repo` out to push to it all the same, or choose another "
                    "`hub_model_id`."
                )

    def record_evaluation(
        self, results: Mapping[str, Any], model: PreTrainedModel, rows: Sequence | None = None
    ) -> dict[str, Any]:
        """Keep the scores that `evaluate_modality_combinations` gave this trainer's whole model, for the card.

        Returns them with `dataset`, `split`, whether that was `trained_on`, the score that the checkpoint was
        `chosen_by` on these rows (or None), and the SHA-256 of the weights. `rows` None is the trainer's own
        evaluation rows.
        """
        rows = self.eval_dataset if rows is None else rows
        own = rows is self._choosing_rows()
        name, split = self._evaluation_origin() if own else _origin(rows)
        source = {
            "dataset": name,
            "split": split,
            "split_note": self.data_description.evaluation_note if own else None,
            "trained_on": rows is self.train_dataset,
            "chosen_by": self.args.metric_for_best_model if own and self._is_best_loaded() else None,
            DIGEST_KEY: weights_digest(model.state_dict().items()),
        }
        self._evaluation = (self.step_of_weights(), source | dict(results))
        return self._evaluation[1]

    def _choosing_rows(self) -> Sequence | None:
        """The evaluation rows; of several sets by name those that the score for the best checkpoint is of."""
        if not isinstance(self.eval_dataset, Mapping):
            return self.eval_dataset
        score = (self.args.metric_for_best_model or "").removeprefix("eval_")
        names = [name for name in self.eval_dataset if score.startswith(f"{name}_")]
        return self.eval_dataset[max(names, key=len)] if names else None

    def _evaluation_origin(self) -> tuple[str | None, str | None]:
        name, split = _origin(self._choosing_rows())
        described = self.data_description
        return dataset_name(described.dataset)[0] or name, described.evaluation_split or split

    def _is_best_loaded(self) -> bool:
        """Whether the weights are those of the best checkpoint, as after a training."""
        found = self.state.best_model_checkpoint and self.state.best_global_step is not None
        return bool(self.args.load_best_model_at_end and not self.is_in_train and found)

    def step_of_weights(self) -> int:
        """Optimiser steps behind the weights as they are now: after a training, those of the best checkpoint."""
        return self.state.best_global_step if self._is_best_loaded() else self.state.global_step

    def recorded_arguments(self) -> dict[str, Any]:
        """The training arguments that decide the result, as values that JSON can hold."""
        arguments = {key: getattr(self.args, key) for key in RECORDED_ARGUMENTS}
        return {key: value.value if isinstance(value, Enum) else value for key, value in arguments.items()}

    def training_record(self) -> TrainingRecord:
        """Collect the facts of the run for the weights as they are now; scores only if they are of these weights."""
        described = self.data_description
        name, on_hub = dataset_name(described.dataset)
        known_name, known_split = _origin(self.train_dataset)
        step = self.step_of_weights()
        finished = [entry for entry in self.state.log_history if "train_runtime" in entry]
        model = self.accelerator.unwrap_model(self.model)
        steps_per_epoch = self.state.global_step / self.state.epoch if self.state.epoch else None
        selection = None
        if self._is_best_loaded():
            source = dict(zip(("dataset", "split"), self._evaluation_origin(), strict=True))
            selection = {"score": self.args.metric_for_best_model} | source
        return TrainingRecord(
            dataset=name or known_name,
            dataset_is_on_hub=on_hub,
            train_split=described.train_split or known_split,
            train_rows=len(self.train_dataset) if has_length(self.train_dataset) else None,
            units=described.units,
            classes=described.classes,
            finetuned_from=dataset_name(model.config._name_or_path or None)[0],
            backbone=_backbone_name(model.pretrained_backbone),
            has_pyramid=any("pyramid" in name for name, _ in model.sgma.named_children()),
            command=self.command or command_line(),
            arguments=self.recorded_arguments(),
            num_processes=self.args.world_size,
            steps=step,
            epochs=step / steps_per_epoch if steps_per_epoch else None,
            train_seconds=finished[-1]["train_runtime"] if finished else None,
            versions=package_versions(),
            commit=package_commit(),
            hardware=hardware_name(self.args.device),
            evaluation=self._evaluation[1] if self._evaluation and self._evaluation[0] == step else None,
            selection=selection,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, processor and record, whole also where FSDP saves shards. To be called on all processes."""
        # No `training_args.bin`: it would be a pickle, with the access token in it.
        output_dir = self.args.output_dir if output_dir is None else output_dir
        state_dict = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.args.should_save:
            self.plain_model().save_pretrained(output_dir, state_dict=state_dict)
            self.processing_class.save_pretrained(output_dir)
            self.training_record().save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def plain_model(self) -> PreTrainedModel:
        """The model that is saved: without its wrappers."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def create_model_card(
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """Write the run's card and record to the output folder; a README.md that a person wrote there stays.

        The card's example loads `model_name`; what is None is taken from the run.
        """
        if not self.is_world_process_zero():
            return
        record = self.training_record()
        record.finetuned_from = finetuned_from or record.finetuned_from
        if dataset is not None:
            record.dataset, record.dataset_is_on_hub = dataset_name(dataset)
        record.save(self.args.output_dir)
        tags = [tags] if isinstance(tags, str) else tags or []
        self._write_card(self.args.output_dir, record, repo_id=model_name, license=license, tags=tags)

    def _write_card(
        self, folder: str | os.PathLike, record: TrainingRecord, repo_id: str | None = None, **options
    ) -> None:
        path = Path(folder) / "README.md"
        if path.is_file() and MARKER not in path.read_text(encoding="utf-8"):
            return
        config = self.accelerator.unwrap_model(self.model).config
        repo_id = repo_id or self.hub_model_id
        card = build_model_card(config, self.processing_class, record, repo_id=repo_id, **options)
        path.write_text(str(card), encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """Save the model and push it with its processor, code and card, in one commit. To be called on all processes.

        As `Trainer.push_to_hub`, with `private` for a repository that is created (None is `args.hub_private_repo`;
        True refuses one that is public). `kwargs` go to `create_model_card`. None on processes other than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        folder = self._staging()
        link_published(Path(self.args.output_dir), folder)
        private = self.args.hub_private_repo if private is None else private
        options = {"private": private, "token": token, "revision": revision or self.args.hub_revision}
        job = run_as_future(self._push_parts, folder, {"": folder}, commit_message, **options)
        return job.result() if blocking else job

    # Private, because Trainer pushes by itself here: half a repository, with `training_args.bin`.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background, from links, as it may be rotated away; no error stops the training."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        staging = self._staging()
        checkpoint = Path(checkpoint_folder)
        link_published(checkpoint, staging / "model")
        self._write_card(staging / "model", self.training_record())
        parts = {"": staging / "model"}
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            _link_files(checkpoint, staging / "checkpoint", ("**/*",))
            parts["last-checkpoint" if is_last else checkpoint.name] = staging / "checkpoint"
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        message = f"Training in progress, {progress}"
        jobs = self.push_in_progress.jobs if busy else []
        self.push_in_progress = PushInProgress([*jobs, run_as_future(self._try_to_push, staging, parts, message)])

    def _try_to_push(self, staging: Path, parts: Mapping[str, Path], message: str) -> None:
        try:
            self._push_parts(staging, parts, message, token=self.args.hub_token, revision=self.args.hub_revision)
        except PUSH_ERRORS as error:
            logger.warning(f"{explain_push_error(error, self.hub_model_id)} Training goes on.")

    def _push_parts(self, staging: Path, parts: Mapping[str, Path], message: str, **options) -> CommitInfo:
        """Push folders to their places in the repository, in a commit each, and remove the staging folder."""
        try:
            for place, folder in parts.items():
                text = f"{message}, checkpoint" if place else message
                commit = push_folder(folder, self.hub_model_id, path_in_repo=place, commit_message=text, **options)
            return commit
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _staging(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="_push-", dir=self.args.output_dir))


def _backbone_name(given: str | Mapping[str, str] | None) -> str | None:
    """Names of what the encoders started from, without folders; those of groups with their modalities."""
    if isinstance(given, Mapping):
        return ", ".join(f"{dataset_name(part)[0]} ({group})" for group, part in given.items())
    return dataset_name(given)[0]


def link_published(source: Path, target: Path) -> None:
    """Link what a repository holds, with the file of a fusion of one's own, into another folder of the same disk."""
    auto_map = json.loads((source / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    code = {f"{reference.partition('.')[0]}.py" for reference in auto_map.values()}
    _link_files(source, target, (*_PUBLISHED, *code))


def _link_files(source: Path, target: Path, patterns: Sequence[str]) -> None:
    """Link the files that match into another folder of the same disk, or copy them where links are not possible."""
    target.mkdir(parents=True, exist_ok=True)
    for path in {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}:
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)


def _origin(rows: Any) -> tuple[str | None, str | None]:
    """Name and split of a data set, where its rows know them."""
    if not isinstance(rows, Dataset):
        return None, None
    return rows.info.dataset_name, None if rows.split is None else str(rows.split)
