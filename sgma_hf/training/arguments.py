"""Arguments of training: transformers' own, what SGMA adds, and what a run is of."""

import inspect
import math
from dataclasses import dataclass

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..model.limits_sgma import DICE_LOSS_WEIGHT, MODALITY_ADAPTER_SIZE
from . import PVT_V2_SIZES


DATE_SHARES = (1.0, 0.5, 0.25)  # of a row's dates that are kept: maps are wanted of few dates, too
MAX_EVALUATIONS = 20  # of those that a run has by default
# Schedules that change the learning rate when the score of the evaluation does not rise.
SCHEDULES_BY_SCORE = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
_NO_METRICS = "evaluation counts pixels in confusion matrices, and gathers no predictions"
_OWN_DTYPE = "evaluation is in the precision of the weights"
# What `SgmaTrainer` would break on, or not follow: the value that each has to have, and why.
_FIXED = {
    "remove_unused_columns": (False, "the collator reads the columns"),
    "label_smoothing_factor": (0.0, "the loss is the model's own"),
    "neftune_noise_alpha": (None, "images have no embeddings of tokens to add the noise to"),
    "train_sampling_strategy": ("random", "`ModalityAwareSampler` draws the rows"),
    "average_tokens_across_devices": (True, "the loss is divided by the valid pixels of all processes"),
    "label_names": (None, "the collator gives `labels`"),
    "prediction_loss_only": (False, "evaluation gives scores, and no loss"),
    "include_for_metrics": ([], _NO_METRICS),
    "batch_eval_metrics": (False, _NO_METRICS),
    "eval_accumulation_steps": (None, _NO_METRICS),
    "eval_do_concat_batches": (True, _NO_METRICS),
    "eval_use_gather_object": (False, _NO_METRICS),
    "bf16_full_eval": (False, _OWN_DTYPE),
    "fp16_full_eval": (False, _OWN_DTYPE),
}


# What decides which weights learn and how fast: a run goes on with the same only.
TUNING_ARGUMENTS = ("freeze_encoder", "encoder_learning_rate", "layer_decay", "lora_rank", "ema_decay")

# Lowest value of numbers that nothing else checks before the rows are read; None stands for a default.
_LOWEST = {
    "crop_size": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "save_total_limit": 1,
    "learning_rate": 0,
    "encoder_learning_rate": 0,
    "lora_rank": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "eval_steps": 0,
    "dataloader_num_workers": 0,
    "seed": 0,
    "data_seed": 0,
}


@dataclass
class SgmaTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's optimiser as defaults, and the augmentation of multimodal rows.

    Where `modality_dropout`, `noise_std` and `gain_range` have several entries, they are in the order of the model's
    modalities; one entry counts for all.

    Args:
        crop_size: Side in pixels of the square window that is cut from each row; None takes whole images.
        random_flip: Whether to flip vertically and horizontally, each with probability 1/2.
        random_quarter_turns: Whether to turn by multiples of 90 degrees.
        random_scale: Crops are zoomed by a factor between 1 / (1 + random_scale) and 1 + random_scale, by their
            logarithms even; 0 for none.
        modality_dropout: Probability to drop a modality that a row has; the last one always stays. The paper drops
            modalities but states no rate. Ours is for models with modality-aware sampling, which trains every
            modality alone anyway; without it 0.5, at which all combinations are about equally frequent, keeps more
            of the single modalities.
        noise_std: Standard deviation of Gaussian noise, in normalised units; 0 for none.
        gain_range: Each modality is multiplied by a random number in [1 - gain_range, 1 + gain_range]; 0 for none.
        augment: What is changed by sensor, as `["rgb=gain,gamma:0.3", "sar=speckle_db"]`, nothing by default: see
            `sgma_hf.training.augmentation`.
        class_balanced_crops: Whether to cut each crop around a pixel of a class that is drawn evenly among those of
            the row, for classes that few pixels have.
        date_dropout: Probability to drop each date of a series; one always stays.
        date_keep: Shares of the dates, of which one is drawn for each row: a model that has seen few dates can do with
            few. 1.0 alone always keeps all.
        max_dates: Most dates of each series that are kept, at random, which bounds the memory that a step takes.
        date_jitter: Days by which the calendar of a row is shifted at most, for other years and climates.
        robustness_sampling: Whether to sample rows with fragile modalities and hard rows more often, and to drop
            fragile modalities less, by what the last epoch showed: see `sgma_hf.training.row_sampling`.
        sampling_hardness: Exponent of a row's relative loss in its weight; 0 leaves hardness out.
        sampling_max_ratio: No row comes more than this many times as often as another.
        freeze_encoder: Whether the encoder stays as it is, in evaluation mode, and only what is around it learns.
        encoder_learning_rate: Initial learning rate of the encoder; None is `learning_rate`.
        layer_decay: The encoder's last block learns at this many times its rate, each before it at this many times the
            rate of the next; 1 is the same rate for all. An encoder without a list of blocks is refused.
        lora_rank: Rank of LoRA at the linear projections and 1x1 convolutions of the encoder, which learns by that
            alone; 0 is without. It is merged in what is saved, and beside that in `adapter`. Needs PEFT.
        ema_decay: What is evaluated and saved is an average of the weights that keeps this share of itself in every
            optimiser step; 0 is without.
        warmup_start_factor: Share of the learning rate that the warm-up of the polynomial schedule starts from. The
            paper warms up for 10 of its 200 epochs at 10 % of the rate; ours ramps from there over 5 % of the steps.

    Changed defaults of `TrainingArguments`, from the paper: `learning_rate` 6e-5, `weight_decay` 1e-2,
    `adam_epsilon` 1e-8, `num_train_epochs` 200, `lr_scheduler_type` "polynomial", then with `lr_scheduler_kwargs`
    {"power": 0.9} unless given, and without an `lr_end` there down to 0, `warmup_steps` 0.05. Ours:
    `remove_unused_columns` False, because the collator reads the rows' columns; `metric_for_best_model`
    "average_miou", the mean over all combinations of the modalities, and schedules that follow it take more for
    better; `logging_steps` 0.01 of all steps, and the first step is logged; a GPU is not waited for to take a batch.

    With rows to evaluate on, and without `eval_strategy`, `save_strategy` and `load_best_model_at_end`, the trainer
    evaluates and saves at the ends of epochs, 20 times at most, keeps the best checkpoint and the last
    (`save_total_limit` 2), and loads the best at the end. What is given holds.

    Raises:
        ValueError: If an argument is outside its range, or is one that the trainer would not follow, such as
            `label_smoothing_factor`.
    """

    crop_size: int | None = HfArg(default=None, help="Side of the training window in pixels.")
    random_flip: bool = HfArg(default=True, help="Flip vertically and horizontally at random.")
    random_quarter_turns: bool = HfArg(default=True, help="Turn by multiples of 90 degrees at random.")
    random_scale: float = HfArg(
        default=0.0, help="Zoom into crops by a factor between 1 / (1 + random_scale) and 1 + random_scale."
    )
    modality_dropout: list[float] = HfArg(
        default_factory=lambda: [0.3], help="Probability to drop a modality: one for all, or one per modality."
    )
    noise_std: list[float] = HfArg(
        default_factory=lambda: [0.0], help="Gaussian noise, normalised units: one, or one per modality."
    )
    gain_range: list[float] = HfArg(
        default_factory=lambda: [0.0], help="Random gain 1 +- gain_range: one, or one per modality."
    )
    augment: list[str] = HfArg(
        default_factory=list,
        help="Augmentation by sensor, as `rgb=gain,gamma sar=speckle dsm=shift:3`, with a strength behind a colon.",
    )
    class_balanced_crops: bool = HfArg(
        default=False, help="Crop around a pixel of a class that is drawn evenly among those of the row."
    )
    date_dropout: float = HfArg(default=0.0, help="Probability to drop each date of a series.")
    date_keep: list[float] = HfArg(
        default_factory=lambda: list(DATE_SHARES), help="Shares of a row's dates, of which one is drawn and kept."
    )
    max_dates: int | None = HfArg(
        default=None, help="Most dates of each series that a row is trained on; default: all."
    )
    date_jitter: float = HfArg(default=0.0, help="Shift all dates of a row by at most so many days, at random.")
    robustness_sampling: bool = HfArg(
        default=True, help="Sample rows and drop modalities by what the last epoch showed about robustness and loss."
    )
    sampling_hardness: float = HfArg(default=0.5, help="Exponent of a row's relative loss in its sampling weight.")
    sampling_max_ratio: float = HfArg(default=4.0, help="Largest ratio of two rows' sampling weights, at least 1.")
    freeze_encoder: bool = HfArg(default=False, help="Train only what is around the encoder.")
    encoder_learning_rate: float | None = HfArg(
        default=None, help="Initial learning rate of the encoder; default: that of all else."
    )
    layer_decay: float = HfArg(
        default=1.0, help="Each block of the encoder learns at this many times the rate of what follows it."
    )
    lora_rank: int = HfArg(default=0, help="Train the encoder by LoRA of this rank (needs PEFT); 0: whole.")
    ema_decay: float = HfArg(
        default=0.0, help="Evaluate and save an average of the weights that keeps this share per step; 0: the last."
    )
    warmup_start_factor: float = HfArg(
        default=0.1, help="Share of the learning rate at which the warm-up starts (polynomial)."
    )

    learning_rate: float = HfArg(default=6e-5, help="Initial learning rate of AdamW.")
    weight_decay: float = HfArg(default=1e-2, help="Weight decay of AdamW.")
    adam_epsilon: float = HfArg(default=1e-8, help="Epsilon of AdamW.")
    num_train_epochs: float = HfArg(default=200.0, help="Number of epochs.")
    lr_scheduler_type: str = HfArg(default="polynomial", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(
        default=0.05, help="Steps of linear warm-up; a number below 1 is a share of all steps."
    )
    remove_unused_columns: bool = HfArg(default=False, help="Has to be False: the collator reads the rows' columns.")
    metric_for_best_model: str | None = HfArg(
        default="average_miou",
        help="What the best checkpoint is chosen by: `average_miou`, `top1_miou`, `last1_miou`, the score of one "
        "combination, as `miou/rgb+dsm`, or of one class, as `average_iou/tree` or `f1/rgb/tree`.",
    )
    eval_strategy: str | None = HfArg(
        default=None,
        help="When to evaluate: `no`, `steps` or `epoch`; default: at ends of epochs, at most 20 times in a run.",
    )
    save_strategy: str | None = HfArg(
        default=None,
        help="When to save a checkpoint: `no`, `steps`, `epoch` or `best`; default: where it is evaluated by default.",
    )
    load_best_model_at_end: bool | None = HfArg(
        default=None, help="Whether to end with the best checkpoint; default: where it is evaluated by default."
    )
    logging_steps: float = HfArg(
        default=0.01, help="Steps between two lines of the log; below 1, a share of all steps."
    )
    logging_first_step: bool = HfArg(default=True, help="Log the first step, too.")
    greater_is_better: bool | None = HfArg(default=True, help="Whether more of that is better.")

    def __post_init__(self):
        self._settle_evaluation()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # else torch only warns that it cannot
        if self.accelerator_config is None and self.dataloader_pin_memory:
            # Else each copy of a batch to a GPU waits for all that the GPU was given before.
            self.accelerator_config = {"non_blocking": True}
        if self.bf16 and not self.use_cpu and not torch.accelerator.is_available():
            raise ValueError(
                "`bf16` is asked for, as recipes do, but torch sees no GPU: give `--bf16 false`, or, to train in "
                "bfloat16 on the CPU, `--use_cpu`."
            )
        super().__post_init__()
        if self.lr_scheduler_type == SchedulerType.POLYNOMIAL:
            self.lr_scheduler_kwargs = self._polynomial_options()
        elif self.lr_scheduler_type in SCHEDULES_BY_SCORE:
            # Left to themselves they wait for a loss to fall, but what they are told here is `metric_for_best_model`.
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode} | (self.lr_scheduler_kwargs or {})
        else:
            self._check_schedule()
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ValueError(f"`{name}` is {value}; expected a number of at least {lowest}.")
        if self.max_steps == 0 or (self.max_steps < 0 and not self.num_train_epochs > 0):
            raise ValueError(
                f"`max_steps` is {self.max_steps} and `num_train_epochs` {self.num_train_epochs}; nothing is trained. "
                "Give one of them, more than 0."
            )
        for name, (expected, reason) in _FIXED.items():
            if getattr(self, name) != expected:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}; expected {expected!r}, because {reason}. Leave it out."
                )
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise ValueError("`fp16` is True, but a CPU trains in float32 or bfloat16; give `bf16`, or leave it out.")
        if self.sampling_hardness < 0 or self.sampling_max_ratio < 1:
            raise ValueError(
                f"`sampling_hardness` is {self.sampling_hardness} and `sampling_max_ratio` {self.sampling_max_ratio}; "
                "expected at least 0 and at least 1."
            )
        if self.ddp_find_unused_parameters is None:
            # A modality that no row of a process has leaves its projector unused there.
            self.ddp_find_unused_parameters = True
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` is {self.layer_decay}; expected a factor above 0, at most 1.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is {self.ema_decay}; expected a share of at least 0, below 1.")
        if self.freeze_encoder and (self.encoder_learning_rate is not None or self.layer_decay < 1 or self.lora_rank):
            raise ValueError(
                "`freeze_encoder` leaves nothing in the encoder that learns by `encoder_learning_rate`, "
                "`layer_decay` or `lora_rank`; leave it or them out."
            )
        if not 0 <= self.warmup_start_factor <= 1:
            raise ValueError(f"`warmup_start_factor` is {self.warmup_start_factor}; expected a share in [0, 1].")
        is_default = self.warmup_start_factor == SgmaTrainingArguments.warmup_start_factor
        if not is_default and self.lr_scheduler_type != SchedulerType.POLYNOMIAL:
            raise ValueError(
                f"`warmup_start_factor` is that of the polynomial schedule, and `lr_scheduler_type` is "
                f"{self.lr_scheduler_type.value!r}; leave one of the two out."
            )

    def _settle_evaluation(self) -> None:
        """Note what is left open of evaluating and saving, and take it as Trainer does until rows are known."""
        self.evaluates_by_default = self.eval_strategy is None and not self.eval_steps
        self.saves_by_default = self.save_strategy is None and self.save_steps == SgmaTrainingArguments.save_steps
        self.chooses_by_default = self.load_best_model_at_end is None
        self.save_strategy = self.save_strategy or SaveStrategy.STEPS
        self.load_best_model_at_end = bool(self.load_best_model_at_end)
        if self.eval_strategy is None:
            self.eval_strategy = IntervalStrategy.STEPS if self.eval_steps else IntervalStrategy.NO
        if self.eval_strategy == IntervalStrategy.STEPS and not self.eval_steps:
            self.eval_steps = self.save_steps  # not `logging_steps`, as Trainer would: that is a share here
        if self.evaluates_by_default and self.chooses_by_score:
            self._evaluate_at_epochs()

    @property
    def chooses_by_score(self) -> bool:
        """Whether something is chosen by the evaluation: the best checkpoint, or the learning rate."""
        by_score = self.lr_scheduler_type in SCHEDULES_BY_SCORE or self.save_strategy == SaveStrategy.BEST
        return self.load_best_model_at_end or by_score

    def evaluate_by_default(self, *, streamed: bool = False) -> None:
        """Settle what was left open, where there are rows to evaluate on; a streamed run has no epochs."""
        if self.evaluates_by_default:
            self._evaluate_at_epochs()
            if streamed and self.saves_by_default:
                self.eval_strategy, self.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
                self.eval_steps = self.save_steps = 1 / MAX_EVALUATIONS
            if self.chooses_by_default:
                self.load_best_model_at_end = self.saves_by_default or self.save_strategy == SaveStrategy.EPOCH

    def _evaluate_at_epochs(self) -> None:
        self.eval_strategy, self.do_eval = IntervalStrategy.EPOCH, True
        if self.saves_by_default:
            self.save_strategy = SaveStrategy.EPOCH
            self.save_total_limit = self.save_total_limit or 2

    def _check_schedule(self) -> None:
        """Refuse options that the schedule's function does not take; it is called when all has been read."""
        parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[self.lr_scheduler_type]).parameters
        known = [name for name in parameters if name not in ("optimizer", "num_warmup_steps", "num_training_steps")]
        unknown = [name for name in self.lr_scheduler_kwargs or {} if name not in known]
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            schedule = self.lr_scheduler_type.value
            raise ValueError(f"`lr_scheduler_kwargs` has {unknown}; the schedule {schedule!r} takes {known}.")

    def _polynomial_options(self) -> dict[str, float]:
        """The polynomial schedule's `lr_scheduler_kwargs` as numbers, or the paper's."""
        given = self.lr_scheduler_kwargs or {"power": 0.9}
        try:
            options = {name: float(value) for name, value in given.items() if name in ("power", "lr_end")}
        except (AttributeError, TypeError, ValueError):  # text in place of names and numbers
            options = {}
        lr_end = options.get("lr_end", 0.0)
        if len(options) < len(given) or (lr_end and not 0 < lr_end <= self.learning_rate):
            raise ValueError(
                f"`lr_scheduler_kwargs` is {given}; expected numbers for the polynomial schedule: its `power`, and "
                f"`lr_end`, the learning rate at the end, from 0 to `learning_rate`, {self.learning_rate}."
            )
        return options


@dataclass
class RunArguments:
    """What `sgma-hf train` trains, and on which rows: its arguments beside `SgmaTrainingArguments`."""

    dataset: str = HfArg(help="Rows: a folder of a converter, or an id on the Hub.")
    train_split: str = HfArg(default="train", help="Split to train on.")
    validation_split: str | None = HfArg(
        default=None,
        help="Split to evaluate on while training, and to choose by; default: `validation` if it has labels.",
    )
    modalities: list[str] | None = HfArg(
        default=None, help="Columns to use, in this order; default: all that the data set names."
    )
    model: str | None = HfArg(
        default=None, help="SGMA checkpoint to go on from, with its processor; default: a new model."
    )
    fit_statistics: list[str] | None = HfArg(
        default=None,
        help="Modalities of `--model` whose mean, standard deviation and range are fitted to the rows: those that "
        "were added to it and have no statistics of their own yet. A new model's are fitted in any case.",
    )
    overwrite: bool = HfArg(
        default=False, help="Replace an earlier run in `--output_dir`; its checkpoints are removed before training."
    )
    backbone: list[str] | None = HfArg(
        default=None,
        help="Pretrained encoder: Hub id or folder of a backbone or classifier of transformers or timm, for instance "
        "OpenGVLab/pvt_v2_b2; or one for each group of modalities, as in rgb+nir=DIR_OR_ID sar=DIR_OR_ID; default: "
        "random weights.",
    )
    backbone_config: list[str] | None = HfArg(
        default=None,
        help=f"Encoder of a new model: {', '.join(PVT_V2_SIZES)}, or JSON, or a file of it; or one for "
        "each group of modalities that `--backbone` does not name, as in sar=pvt_v2_b0; default: pvt_v2_b2.",
    )
    encoder_groups: list[str] | None = HfArg(
        default=None,
        help="Groups of modalities that have an encoder of their own, all of one configuration, as in rgb+nir sar; "
        "default: one encoder for all.",
    )
    encoder_statistics: list[str] | None = HfArg(
        default=None,
        help="Modalities that are normalised as the images of `--backbone` were, by its preprocessor_config.json or "
        "ImageNet's statistics; default: those of three bands of 8 bits; `none`: all by the training rows.",
    )
    decoder_hidden_size: int = HfArg(default=256, help="Width of a new model's decode head.")
    logits_stride: int = HfArg(
        default=4,
        help="Pixels a side of the cells of a new model's logits: 4, or 2 or 1 where what is to be seen is a few "
        "pixels wide.",
    )
    modality_adapter_size: int = HfArg(
        default=MODALITY_ADAPTER_SIZE,
        help="Hidden channels of a new model's adapter of each modality; 0, the paper's model, has none.",
    )
    fusion: str = HfArg(
        default="sgf",
        help="How a new model fuses: sgf, mean, pointwise_mean, projector_mean, or a registered fusion of your own.",
    )
    date_periods: list[float] | None = HfArg(
        default=None,
        help="Periods in days by which a new model knows dates; default: a year and its parts, where the data set has "
        "series; 0: it knows none.",
    )
    mas_loss_weight: float = HfArg(
        default=1.0, help="Weight of modality-aware sampling's loss in a new model; 0 leaves it out."
    )
    subset_loss_weight: float = HfArg(
        default=0.0,
        help="Weight, in a new model, of the loss of a prediction from some of a row's modalities together, drawn by "
        "modality-aware sampling; it takes the place of modality dropout.",
    )
    filter_loss_weight: float = HfArg(
        default=0.0, help="Weight, in a new model, of a cross-entropy of the class filter's scores at every stage."
    )
    dice_loss_weight: float = HfArg(
        default=DICE_LOSS_WEIGHT,
        help="Weight of a Dice loss beside the cross-entropy in a new model, against class imbalance; 0 is the "
        "paper's loss.",
    )
    class_weighting: str = HfArg(
        default="none",
        help="Weigh a new model's classes in the loss by the inverse of their share of the training pixels, or "
        "by its square root.",
        metadata={"choices": ["none", "inverse_sqrt", "inverse"]},
    )
