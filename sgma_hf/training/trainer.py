"""Training of SGMA on transformers' Trainer."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import speed_metrics

from ..data.rows import warn_of_dates
from ..evaluation.combinations import evaluate_modality_combinations
from ..evaluation.prepared_rows import check_processor
from ..model.dates_sgma import over_dates
from ..model.fusion_code_sgma import check_fusion
from ..model.fusion_sgma import find_fusion
from .arguments import SgmaTrainingArguments
from .checkpoints import (
    SAMPLER_STATE_NAME,
    TRAINER_STATE_NAME,
    check_continues,
    check_rows_per_step,
    checkpoint_to_resume,
    compare_arguments,
    read_sampler_state,
    remove_checkpoint,
)
from .collator import SgmaDataCollator, batches_by_size, collator_of, data_seed
from .dynamics import LearningDynamics, feature_separation, modality_parameters
from .fine_tuning.learning_rates import prepare_encoder
from .fine_tuning.tuning_trainer import TuningTrainer
from .progress import SUMMARY_SCORES, PlainLog, SpreadEvaluations, check_metric, scores_by_name
from .row_sampling import (
    EpochRows,
    ModalityAwareSampler,
    RowKey,
    RowWeightsFile,
    SamplingState,
    StreamedRows,
    modality_fragility,
    row_weights,
)
from .sharding import UnusedParameters, as_many_batches, check_sharding, fill_optimizer_state, whole_copy
from .start import check_batches, check_dataset, dates_of_rows, largest_side, prepare_to_stream
from .statistics import TrainingStatistics


# What `Trainer` takes and this one has no use for: it evaluates every combination of the modalities itself.
_WITHOUT_EFFECT = ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics")


class _EpochCallback(TrainerCallback):
    """Tells the trainer of epochs, which a loader that skips batches after a resume does not, of steps and the end."""

    def __init__(self, trainer: "SgmaTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer._begin_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._add_gradients()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.tuned_weights is not None:
            self.trainer.tuned_weights.update_average()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer._end_epoch()


class SgmaTrainer(TuningTrainer):
    """Trains SGMA on rows of the one schema, and evaluates it on every combination of the modalities.

    Besides `loss`, the log has `loss_sgf` and `loss_mas`, and `robustness/<modality>` and
    `sampling_probability/<modality>`: means over the rows that had the modality and at least one more. `evaluate`
    returns the scores of `evaluate_modality_combinations` as `eval_average_miou`, `eval_top1_miou`,
    `eval_last1_miou` and `eval_miou/<combination>`.

    Once per epoch, and at evaluations, the log has how each modality learns as `dynamics/...`; with the figures per
    class it is in `learning_dynamics.json` in `args.output_dir`: see `sgma_hf.training.dynamics`. How often each row
    shall come is in `row_weights.jsonl`, epoch by epoch: see `sgma_hf.training.row_sampling`.

    Several processes train as Accelerate's configuration says: DDP, or FSDP version 2 (scripts/accelerate_fsdp.yaml).
    One process trains on one GPU.

    Args:
        model: The model to train.
        args: Arguments of training.
        processing_class: The model's image processor; it is saved with every checkpoint.
        train_dataset: Rows (`load_rows`), every one with a label and at least one modality. An IterableDataset streams
            them: then `max_steps` is needed, the run is one epoch, and `robustness_sampling` is off.
        eval_dataset: Rows to evaluate on and, with `load_best_model_at_end`, to choose the best checkpoint by: never
            those that results are reported on.
        data_collator: An `SgmaDataCollator`, or one of a class derived from it, whose augmentation counts in place of
            that of `args`, which take it over; None is the one that `args` describe.
        kwargs: Passed on to `Trainer`.

    Raises:
        ValueError: If processor and model disagree on the modalities or the ignored label, there is no row, no
            evaluation gives the `metric_for_best_model`, the model has nothing that an option of fine-tuning is for,
            or Accelerate was started with DeepSpeed or FSDP version 1.
        TypeError: If a data set has no length and is no IterableDataset to train on, `data_collator` is of another
            class, or `kwargs` has a function that would not be called, such as `compute_metrics`.
    """

    # The loss is divided by the pixels of the whole step already, see `compute_loss`.
    loss_is_scaled_for_ga = True

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
        ignored = [name for name in _WITHOUT_EFFECT if kwargs.get(name) is not None]
        if ignored:
            raise TypeError(
                f"`SgmaTrainer` does not call {ignored}: the loss is the model's, and the scores of all "
                "combinations of the modalities are its own. Leave them out, or change `compute_loss` or `evaluate` "
                "in a subclass."
            )
        check_processor(model.config, processing_class)
        check_dataset("train_dataset", train_dataset, may_stream=True)
        check_dataset("eval_dataset", eval_dataset)
        self._streams = isinstance(train_dataset, torch.utils.data.IterableDataset)
        if self._streams:
            prepare_to_stream(args)
        if eval_dataset is not None and not isinstance(eval_dataset, Mapping):
            args.evaluate_by_default(streamed=self._streams)
        check_metric(args, model.config, eval_dataset)
        if args.save_strategy != "no":
            check_fusion(model)
        prepare_encoder(model, args)
        super().__init__(
            model,
            args,
            data_collator=collator_of(args, processing_class, data_collator, model.config),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_sharding(self.accelerator, tunes_weights=bool(args.lora_rank or args.ema_decay))
        self._model_class = type(model)  # sharding makes it another one
        self._unused_parameters = UnusedParameters(model, self.accelerator) if self.is_fsdp_enabled else None
        # First of all: those that report to others stop doing so at the end of training.
        self.callback_handler.callbacks.insert(0, _EpochCallback(self))
        for shows in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            self.remove_callback(shows)
        self.add_callback(PlainLog)
        if args.evaluates_by_default:
            self.add_callback(SpreadEvaluations)
        if train_dataset is not None and not self._streams:
            self._num_dates = dates_of_rows(train_dataset, processing_class.modalities)
            knows_dates = self.data_collator.with_dates
            warn_of_dates(train_dataset, processing_class.modalities, knows_dates=knows_dates)
            check_batches(args, len(train_dataset))
        self.dynamics: LearningDynamics | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train as `Trainer.train` does; model (`tile_size`) and processor (`reference_window`) note the size.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the last one in `args.output_dir` that was
                written to its end.
            kwargs: Passed on to `Trainer.train`.

        Raises:
            ValueError: If there are no rows to train on, one process sees several GPUs, or there is no complete
                checkpoint to resume from, or it is one of another model, of another way to share the model out among
                the processes, of steps of another number of rows, or beyond the last step of this run.
        """
        if self.train_dataset is None:
            raise ValueError("SgmaTrainer needs a `train_dataset` to train on; pass one.")
        if self.args.n_gpu > 1:  # Trainer would spread every batch over them by `nn.DataParallel`
            raise ValueError(
                f"This process sees {self.args.n_gpu} GPUs, and it trains on one. Start a process for each by "
                "`accelerate launch`, or choose one by the environment variable CUDA_VISIBLE_DEVICES, for instance "
                "CUDA_VISIBLE_DEVICES=0."
            )
        if resume_from_checkpoint:
            resume_from_checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        # Not earlier: a model that is only evaluated keeps the size that it was trained on.
        self.model.config.tile_size = self.args.crop_size or largest_side(self.train_dataset)
        self.processing_class.reference_window = self.model.config.tile_size
        self.model.config.temperature = 1.0  # that of other weights
        if resume_from_checkpoint:
            self._check_continues(resume_from_checkpoint)
        self._start_statistics(resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _check_continues(self, checkpoint: str) -> None:
        """Refuse a checkpoint that this run would not continue; the number of processes alone may differ."""
        layout = "plain"
        if self.is_fsdp_enabled:
            is_whole = "FULL_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
            layout = "fsdp_full" if is_whole else "fsdp_sharded"
        if self.args.auto_find_batch_size:  # Trainer goes on with the batch that was found
            state = TrainerState.load_from_json(Path(checkpoint) / TRAINER_STATE_NAME)
            self._train_batch_size = state.train_batch_size
        *_, last_step = self.set_initial_training_values(self.args, self.get_train_dataloader())
        check_continues(checkpoint, self.model.config, layout=layout, last_step=last_step)
        compare_arguments(checkpoint, self.recorded_arguments())
        if not self.args.ignore_data_skip:
            check_rows_per_step(
                checkpoint,
                self._rows_per_step(),
                num_processes=self.accelerator.num_processes,
                accumulation_steps=self.args.gradient_accumulation_steps,
            )

    def _rows_per_step(self) -> int:
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    def _start_statistics(self, checkpoint: str | None) -> None:
        """Begin without statistics, or with those that the checkpoint was saved with."""
        config = self.model.config
        self.sampling_state = SamplingState()
        channels = self.model.sgma.channels if find_fusion(config).has_robustness else ()
        num_rows = 1 if self._streams else len(self.train_dataset)  # streamed rows are counted together
        self.statistics = TrainingStatistics(num_rows, config, self.args.device, stage_channels=channels)
        self.dynamics = LearningDynamics(list(config.modalities), config.class_names)
        self._row_weights: RowWeightsFile | None = None
        if checkpoint:
            saved = read_sampler_state(checkpoint)
            self.sampling_state = SamplingState.from_dict(saved["state"])
            self.dynamics.load(saved["dynamics"])
            if self.is_world_process_zero():
                self.statistics.load(saved["sums"])

    def _begin_epoch(self, epoch: int) -> None:
        """Freeze what the last epoch showed, and let it steer the order of rows and the dropout of this one."""
        self.sampler.set_epoch(epoch)
        self._modality_parameters = modality_parameters(self.model, self.model.config.num_modalities)
        state = self.sampling_state
        if state.epoch != epoch:  # else resumed in mid-epoch: its weights stay
            state = SamplingState(epoch, state.frozen.updated_by(self._end_epoch()))
            self.statistics.clear()
            self.sampling_state = state
        if not self.args.robustness_sampling:
            return
        args, names = self.args, self.processing_class.modalities
        weights = row_weights(
            state.frozen, self._num_dates > 0, hardness=args.sampling_hardness, max_ratio=args.sampling_max_ratio
        )
        fragility = modality_fragility(state.frozen, len(names))
        dropout = np.broadcast_to(args.modality_dropout, len(names)) ** fragility
        self.sampler.weights, self.sampler.dropout = weights, tuple(dropout.tolist())
        if self.is_world_process_zero():
            if self._row_weights is None:
                self._row_weights = RowWeightsFile(args.output_dir, epoch)
            self._row_weights.write(epoch, weights)
        logs = {"row_weight/min": float(weights.min()), "row_weight/max": float(weights.max())}
        for name, phi, probability in zip(names, fragility.tolist(), dropout.tolist(), strict=True):
            logs |= {f"fragility/{name}": phi, f"modality_dropout/{name}": probability}
        self.log(logs)

    def _add_gradients(self) -> None:
        if self._unused_parameters is not None:
            self._unused_parameters.drop_gradients(self.model)
        # Every process holds the same gradients, unless their parameters are sharded.
        is_first = self.is_world_process_zero()
        if is_first or self.is_fsdp_enabled:
            self.statistics.add_gradients(self._modality_parameters, counted=is_first)

    def _end_epoch(self) -> dict[str, Any]:
        """Record how each modality learned in the epoch that has ended, if one has, and return what it showed."""
        summary = self.statistics.summary(self.accelerator)
        if self.sampling_state.epoch >= 0:
            logs = self.dynamics.add_epoch(summary, epoch=self.state.epoch, step=self.state.global_step)
            self._log_dynamics(logs)
        return summary

    def _log_dynamics(self, logs: dict[str, float]) -> None:
        if logs:
            self.log(logs)
        if self.is_world_process_zero():
            self.dynamics.save(self.args.output_dir)

    def whole_model(self) -> PreTrainedModel:
        """The model without its wrappers; where it is sharded, a copy with all weights. To be called on all processes.

        Evaluation calls `encode` and `fuse_and_decode`, not `forward`, and on each process as often as that has rows.
        """
        if any(isinstance(parameter, DTensor) for parameter in self.model.parameters()):
            return whole_copy(self.model, self._model_class)
        return self.plain_model()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `TuningTrainer` does; a checkpoint never over an earlier attempt's: half of each looks whole."""
        if _internal_call and output_dir is not None:
            if self.is_world_process_zero():
                remove_checkpoint(output_dir)
            if self.is_fsdp_enabled:
                fill_optimizer_state(self.optimizer)
            self.accelerator.wait_for_everyone()
        super().save_model(output_dir, _internal_call)

    # Private, because nothing public lies between what every process writes and `trainer_state.json`, which the first
    # writes when all have written theirs: adding up the statistics, they wait for each other.
    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state, the weights to go on from if they are others, and what row sampling knows."""
        super()._save_rng_state(output_dir)
        self.statistics.reduce(self.accelerator)
        if self.is_world_process_zero():
            if self.tuned_weights is not None:
                self.tuned_weights.save(output_dir)
            content = {
                "state": self.sampling_state.to_dict(),
                "sums": {name: values.tolist() for name, values in self.statistics.sums.items()},
                "dynamics": self.dynamics.to_dict(),
                "num_processes": self.accelerator.num_processes,
                "rows_per_step": self._rows_per_step(),
            }
            (Path(output_dir) / SAMPLER_STATE_NAME).write_text(json.dumps(content), encoding="utf-8")

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """The training rows in the order of `ModalityAwareSampler`, with their keys."""
        if self._streams:
            self.sampler = ModalityAwareSampler(0, data_seed(self.args))  # draws no rows
            rows = StreamedRows(self.train_dataset)
            return self._get_dataloader(rows, "Training", self._train_batch_size, is_training=True)
        processes = self.accelerator.num_processes
        # Accelerate would repeat rows, to deal out as many to every process.
        multiple = 1 if processes == 1 else processes * self._train_batch_size
        self.sampler = ModalityAwareSampler(
            len(self.train_dataset),
            data_seed(self.args),
            multiple=multiple,
            lengths=self._longest_series if (self._num_dates > 1).any() else None,
            step_rows=processes * self._train_batch_size,
        )
        options = {"batch_size": self._train_batch_size, "sampler_fn": lambda rows: self.sampler, "is_training": True}
        return self._get_dataloader(EpochRows(self.train_dataset), description="Training", **options)

    def _longest_series(self, key: RowKey) -> int:
        return self.data_collator.longest_series(key, self._num_dates[key.index].tolist())

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """Collect the batches of one step, and count their valid pixels over all processes.

        After the last step there are none: Trainer would make one more of a run that was killed at its end.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        ignore_index = self.model.config.semantic_loss_ignore_index
        count = torch.zeros((), dtype=torch.int64, device=device)
        for part in (part for batch in batches for part in batches_by_size(batch)):
            valid, mask = part["labels"] != ignore_index, over_dates(part["modality_mask"])
            if mask.ndim == 4:
                valid = valid & mask.any(1)
            count += valid.sum().to(device)
        return batches, self.accelerator.reduce(count, "sum").clamp_min(1)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Train on a batch as `Trainer.training_step` does, on rows of unequal sizes size by size.

        Padding to one size would change what the encoder makes of a row, and with it what a step learns by how its
        rows are dealt out.
        """
        *others, last = as_many_batches(batches_by_size(inputs), self.accelerator)
        losses = []
        for part in others:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return sum(losses, super().training_step(model, last, num_items_in_batch))

    def floating_point_ops(self, inputs):
        """As `Trainer.floating_point_ops`, of all parts of a batch."""
        return sum(super(SgmaTrainer, self).floating_point_ops(part) for part in batches_by_size(inputs))

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The model's loss, divided by the valid pixels of the whole step: of all its batches and processes.

        What the log and the statistics want is added up on the way, on the device.
        """
        inputs = dict(inputs)
        row_index = inputs.pop("row_index", None)
        if num_items_in_batch is not None:
            # Gradients are averaged over the processes afterwards.
            num_items_in_batch = num_items_in_batch / self.accelerator.num_processes
        if self._unused_parameters is not None and model.training:
            self._unused_parameters.add_pair(inputs, self.model.config.semantic_loss_ignore_index)
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, output_prototypes=model.training)
        if model.training and row_index is not None:
            self.statistics.add(outputs, over_dates(inputs["modality_mask"]), inputs["labels"], row_index)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means since the last time over all processes."""
        if "loss" in logs and self.is_in_train:
            place = {"step": self.state.global_step, "epoch": self.state.epoch}
            self.dynamics.steps.append(place | {"loss": logs["loss"]})
            logs |= self.statistics.means_to_log(self.accelerator)
        super().log(logs, start_time)

    def score(self, rows: Sequence[Mapping[str, Any]], model: PreTrainedModel | None = None) -> dict[str, Any]:
        """Score the model on every combination of its modalities, and keep that for the card.

        Returns what `record_evaluation` does; `model` is what `whole_model` returned, if it is there already.
        """
        model = self.whole_model() if model is None else model
        results = evaluate_modality_combinations(
            model,
            self.processing_class,
            rows,
            window_size=self.model.config.tile_size,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress_bar=not (self.args.disable_tqdm or self.is_in_train) and self.is_world_process_zero(),
            accelerator=self.accelerator,
        )
        return self.record_evaluation(results, model, rows)

    def predict(self, *args, **kwargs):
        """Refuse, by a NotImplementedError: the logits of a whole data set would have to be kept."""
        raise NotImplementedError(
            "`SgmaTrainer` has no `predict`. For scores call `evaluate(dataset)`; for maps use `pipeline`, "
            "`predict_raster`, or the model's output with `processor.post_process_semantic_segmentation`."
        )

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
            Scores as fractions in [0, 1] by the names of `scores_by_name` behind the prefix, as
            `<prefix>_average_miou`, those that are defined, with the time it took.

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
        model = self.whole_model()
        results = self.score(dataset, model)
        metrics = {f"{metric_key_prefix}_{name}": score for name, score in scores_by_name(results).items()}
        metrics |= speed_metrics(metric_key_prefix, start_time, num_samples=results["rows"])
        self.log(metrics)
        if self.dynamics is not None:  # part of the record of a training
            separation = feature_separation(model, self.processing_class, dataset, seed=self.args.seed)
            where = {"epoch": self.state.epoch or 0.0, "step": self.step_of_weights(), "name": metric_key_prefix}
            scores = {name: results[name] for name in SUMMARY_SCORES}
            self._log_dynamics(self.dynamics.add_evaluation(separation, scores, **where))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
