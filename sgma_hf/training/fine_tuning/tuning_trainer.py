"""The part of training that decides how fast each weight learns, and which weights a run ends with."""

import torch
from transformers import PreTrainedModel, SchedulerType

from ..hub_trainer import HubTrainer
from .learning_rates import polynomial_schedule, spread_rates
from .weights import TunedWeights, copy_adapter


class TuningTrainer(HubTrainer):
    """HubTrainer with rates by parameter, adapters, and an average: it evaluates and saves plain models."""

    tuned_weights: TunedWeights | None = None  # while it trains with adapters or an average

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """Train as `Trainer.train` does; the model has adapters only as long as that takes."""
        if self.args.lora_rank or self.args.ema_decay:
            self.tuned_weights = TunedWeights(self.model, self.args)
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            self._save_adapter(self.args.output_dir)
            return result
        finally:
            self._settle_weights()

    def _save_adapter(self, folder: str) -> None:
        if self.tuned_weights is not None and self.args.should_save:
            self.tuned_weights.save_adapter(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `HubTrainer` does, with the adapters beside it while it trains them."""
        super().save_model(output_dir, _internal_call)
        self._save_adapter(output_dir or self.args.output_dir)

    def _settle_weights(self) -> None:
        """End with plain weights, after which another training starts anew."""
        if self.tuned_weights is not None:
            self.tuned_weights.settle()
            self.tuned_weights = self.optimizer = None
            self.model_wrapped = self.model

    # Private, as the next: what a run with adapters or an average goes on from is not what its checkpoint shows.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.tuned_weights is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.tuned_weights.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.tuned_weights is not None:
            self._settle_weights()
            if self.args.should_save:
                copy_adapter(self.state.best_model_checkpoint, self.args.output_dir)
        super()._load_best_model()

    def plain_model(self) -> PreTrainedModel:
        """As `HubTrainer.plain_model`, with averaged weights and merged adapters where the run has them."""
        return super().plain_model() if self.tuned_weights is None else self.tuned_weights.plain_model()

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Set up the optimiser as `Trainer` does, with learning rates of their own for the encoder's parameters."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and (self.args.encoder_learning_rate is not None or self.args.layer_decay < 1):
            spread_rates(optimizer, self.model if model is None else model, self.args)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Set up the schedule; the polynomial one warms up from `args.warmup_start_factor`, not from 0."""
        if self.lr_scheduler is not None or self.args.lr_scheduler_type != SchedulerType.POLYNOMIAL:
            return super().create_scheduler(num_training_steps, optimizer)
        factor = polynomial_schedule(self.args, num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler
