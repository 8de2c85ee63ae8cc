"""Training of SGMA on transformers' Trainer."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedModel, SchedulerType, Trainer, TrainerCallback
from transformers.trainer_utils import speed_metrics

from .checkpoints import is_complete_checkpoint, last_complete_checkpoint
from .data_collator import SgmaDataCollator
from .evaluation import evaluate_modality_combinations
from .modality_sampling import EpochRows, EpochSampler
from .training_args import SgmaTrainingArguments


class _EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins: a loader that skips the first batches after a resume does not."""

    def __init__(self, trainer: "SgmaTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.epoch_sampler.set_epoch(int(state.epoch or 0))


class SgmaTrainer(Trainer):
    """Trains SGMA on rows of the one schema, and evaluates it on every combination of the modalities.

    Besides `loss`, the log has `loss_sgf` and `loss_mas`, and `robustness/<modality>` and
    `sampling_probability/<modality>`: means over the rows that had the modality and at least one more. `evaluate`
    returns the scores of `evaluate_modality_combinations` as `eval_average_miou`, `eval_top1_miou`,
    `eval_last1_miou` and `eval_miou/<combination>`.

    Args:
        model: The model to train.
        args: Arguments of training.
        processing_class: The model's image processor; it is saved with every checkpoint.
        train_dataset: Rows (`load_rows`), every one with a label and at least one modality.
        eval_dataset: Rows to evaluate on and, with `load_best_model_at_end`, to choose the best checkpoint by: never
            those that results are reported on.
        data_collator: Defaults to the `SgmaDataCollator` that `args` describe.
        kwargs: Passed on to `Trainer`.

    Raises:
        ValueError: If processor and model disagree on the modalities, or there is no row.
        TypeError: If `train_dataset` has no length.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SgmaTrainingArguments,
        *,
        processing_class: BaseImageProcessor,
        train_dataset: Sequence[Mapping[str, Any]] | None = None,
        eval_dataset: Sequence[Mapping[str, Any]] | None = None,
        data_collator: SgmaDataCollator | None = None,
        **kwargs,
    ):
        _check_processor(processing_class, model)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            _check_dataset(name, dataset)
        if data_collator is None:
            data_collator = SgmaDataCollator(
                processing_class,
                crop_size=args.crop_size,
                random_flip=args.random_flip,
                random_quarter_turns=args.random_quarter_turns,
                modality_dropout=args.modality_dropout,
                noise_std=args.noise_std,
                gain_range=args.gain_range,
                seed=_data_seed(args),
            )
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.add_callback(_EpochCallback(self))
        self._sums: dict[str, torch.Tensor] = {}

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train as `Trainer.train` does.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the last one in `args.output_dir` that was
                written to its end.
            kwargs: Passed on to `Trainer.train`.

        Raises:
            ValueError: If there is no complete checkpoint to resume from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir!r} has no complete checkpoint to resume from. Leave "
                    "`resume_from_checkpoint` out to start, or correct `output_dir`."
                )
        elif resume_from_checkpoint and not is_complete_checkpoint(resume_from_checkpoint):
            last = last_complete_checkpoint(Path(resume_from_checkpoint).parent)
            raise ValueError(
                f"{str(resume_from_checkpoint)!r} is not a complete checkpoint: saving it was interrupted, or it is "
                f"another folder. The last complete one beside it: {last}."
            )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """The training rows in the order of `EpochSampler`, with their epoch and index."""
        if self.train_dataset is None:
            raise ValueError("SgmaTrainer needs a `train_dataset` to train on; pass one.")
        self.epoch_sampler = EpochSampler(len(self.train_dataset), _data_seed(self.args))
        return self._get_dataloader(
            EpochRows(self.train_dataset),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda rows: self.epoch_sampler,
            is_training=True,
        )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Set up the schedule; the polynomial one warms up from `args.warmup_start_factor`, not from 0."""
        if self.lr_scheduler is not None or self.args.lr_scheduler_type != SchedulerType.POLYNOMIAL:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup_steps = self.args.get_warmup_steps(num_training_steps)
        power = self.args.lr_scheduler_kwargs.get("power", 1.0)
        start = self.args.warmup_start_factor

        def factor(step: int) -> float:
            if step < warmup_steps:
                return start + (1 - start) * step / warmup_steps
            return max(0.0, 1 - (step - warmup_steps) / max(1, num_training_steps - warmup_steps)) ** power

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The model's own loss; what the log wants is added up on the way, on the device."""
        outputs = model(**inputs)
        if model.training:
            self._add_up(outputs, inputs["modality_mask"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    @torch.no_grad()
    def _add_up(self, outputs, modality_mask: torch.Tensor) -> None:
        """Add a batch to the running sums, each with its count in the last place."""
        one = torch.ones((), device=outputs.loss.device)
        for name, loss in outputs.loss_dict.items():
            self._accumulate(name, torch.stack([loss.float(), one]))
        present = modality_mask if modality_mask.ndim == 2 else modality_mask.flatten(2).any(2)
        counted = present & (present.sum(1, keepdim=True) > 1)
        if outputs.robustness is not None:
            means = []
            for maps in outputs.robustness:
                covered = maps.sum(1, keepdim=True) > 0
                means.append(maps.flatten(2).sum(2) / covered.flatten(2).sum(2).clamp_min(1))
            self._add_rows("robustness", torch.stack(means).mean(0), counted)
        if outputs.sampling_probabilities is not None:
            self._add_rows("sampling_probability", outputs.sampling_probabilities, counted)

    def _add_rows(self, name: str, values: torch.Tensor, counted: torch.Tensor) -> None:
        for index, modality in enumerate(self.model.config.modalities):
            total = torch.where(counted[:, index], values[:, index].float(), 0).sum()
            self._accumulate(f"{name}/{modality}", torch.stack([total, counted[:, index].sum().float()]))

    def _accumulate(self, name: str, total_and_count: torch.Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + total_and_count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means since the last time over all processes."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = self.accelerator.reduce(torch.stack([self._sums[name] for name in names]), "sum").tolist()
            self._sums = {}
            logs |= {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Sequence[Mapping[str, Any]] | Mapping[str, Sequence] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the model on every combination of its modalities.

        Args:
            eval_dataset: Rows, or a dict of several sets of rows by name; None takes the trainer's own.
            ignore_keys: Not used; there for `Trainer`'s signature.
            metric_key_prefix: Prefix of the names of the scores.

        Returns:
            Scores as fractions in [0, 1]: `<prefix>_average_miou`, `<prefix>_top1_miou`, `<prefix>_last1_miou` and
            `<prefix>_miou/<combination>`, those that are defined, with the time it took.

        Raises:
            ValueError: If there are no rows to evaluate on.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("SgmaTrainer.evaluate needs rows; pass `eval_dataset` here or to the trainer.")
        if isinstance(dataset, Mapping):
            parts = [self.evaluate(rows, ignore_keys, f"{metric_key_prefix}_{name}") for name, rows in dataset.items()]
            return {key: score for part in parts for key, score in part.items()}
        start_time = time.time()
        results = evaluate_modality_combinations(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress_bar=not self.args.disable_tqdm and self.is_world_process_zero(),
        )
        metrics = {
            f"{metric_key_prefix}_{name}": results[name] for name in ("average_miou", "top1_miou", "last1_miou")
        }
        for name, scores in results["combinations"].items():
            metrics[f"{metric_key_prefix}_miou/{name}"] = scores["miou"]
        metrics = {name: score for name, score in metrics.items() if score is not None}
        metrics |= speed_metrics(metric_key_prefix, start_time, num_samples=results["rows"])
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _data_seed(args: SgmaTrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed


def _check_processor(processor: BaseImageProcessor, model: PreTrainedModel) -> None:
    given = dict(zip(processor.modalities, processor.modality_channels, strict=True))
    expected = dict(zip(model.config.modalities, model.config.modality_channels, strict=True))
    if list(given.items()) != list(expected.items()):
        raise ValueError(
            f"The processor has the modalities {given}, the model {expected}; they have to be the same, in one order. "
            "Build the processor from the model's configuration, or load both from one checkpoint."
        )


def _check_dataset(name: str, dataset: Any) -> None:
    if dataset is None or isinstance(dataset, Mapping):
        return
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"`{name}` is a {type(dataset).__name__} without a length; the order of rows is drawn from their number. "
            "Load the data set without streaming."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{name}` has no rows; expected at least one.")
