"""What a run says while it trains: a plain line per logging step and per evaluation, and the names of its scores."""

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..data.codec import decode_raster
from ..data.command_line import did_you_mean
from ..data.rows import present_modalities
from ..evaluation.combinations import modality_combinations
from ..evaluation.metrics import mean_of_defined
from ..model.configuration_sgma import SgmaConfig
from .arguments import MAX_EVALUATIONS, SgmaTrainingArguments


SUMMARY_SCORES = ("average_miou", "last1_miou", "top1_miou")


class PlainLog(TrainerCallback):
    """Prints a line per logging step and per evaluation; all other figures are for trackers and files.

    The seconds per step are those of the steps alone, without evaluations and checkpoints.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self._seconds, self._steps, self._since = 0.0, 0, time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Count the step and its seconds."""
        now = time.perf_counter()
        self._seconds, self._steps, self._since = self._seconds + now - self._since, self._steps + 1, now

    def on_evaluate(self, args, state, control, **kwargs):
        """Leave out what was no step."""
        self._since = time.perf_counter()

    on_save = on_evaluate

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the line of a logging step or of an evaluation."""
        if not state.is_world_process_zero:
            return
        place = f"step {state.global_step}/{state.max_steps}, epoch {state.epoch or 0:.4g}: "
        if "loss" in logs:
            pace = f"{self._seconds / max(1, self._steps):.3g} s/step"
            self._seconds, self._steps = 0.0, 0
            _say(f"{place}loss {logs['loss']:.4f}, rate {logs['learning_rate']:.3g}, {pace}")
        for name in logs:
            prefix, found, rest = name.partition("_average_miou")
            if found and not rest:
                average, last, top = (f"{100 * logs[f'{prefix}_{score}']:.2f}" for score in SUMMARY_SCORES)
                what = (place if state.max_steps else "") + ("" if prefix == "eval" else f"{prefix}: ")
                _say(f"{what}Average {average}, Last-1 {last}, Top-1 {top} (mIoU in %)")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class SpreadEvaluations(TrainerCallback):
    """Of the evaluations at the ends of epochs, leaves 20 at most, evenly spread, the last among them.

    With them go the checkpoints, unless it was asked for one at the end of each epoch.

    It comes after Trainer's own callback, which asks for one at each end.
    """

    def on_epoch_end(self, args, state, control, **kwargs):
        """Take back what Trainer asks for at the end of this epoch, unless it is one of the 20."""
        ended, epochs = round(state.epoch), state.num_train_epochs
        before, after = (MAX_EVALUATIONS * epoch // epochs for epoch in (ended - 1, ended))
        if epochs > MAX_EVALUATIONS and before == after and state.global_step < state.max_steps:
            control.should_evaluate = False
            control.should_save &= not args.saves_by_default  # saving that was asked for stays


class _Score(NamedTuple):
    key: str  # among `segmentation_scores`
    combination: str | None  # names joined by "+"; None is the mean over all
    label: int | None  # id of the class; None is the mean over all


def _score_names(combinations: Collection[str], class_names: Sequence[str]) -> dict[str, _Score]:
    names = {}
    for kind, mean, key in (("iou", "miou", "iou"), ("f1", "f1", "f1_per_class")):
        for combination in (None, *combinations):
            where = f"average_{kind}" if combination is None else f"{kind}/{combination}"
            names |= {f"{where}/{name}": _Score(key, combination, index) for index, name in enumerate(class_names)}
            if combination is not None:
                names[f"{mean}/{combination}"] = _Score(mean, combination, None)
    pixels = [(key, combination) for key in ("accuracy", "kappa") for combination in combinations]
    return names | {f"{key}/{combination}": _Score(key, combination, None) for key, combination in pixels}


def scores_by_name(results: Mapping[str, Any]) -> dict[str, float]:
    """The scores of `evaluate_modality_combinations` that are defined, by the names that trackers see.

    `average_miou`, `last1_miou` and `top1_miou`; `miou/`, `f1/`, `accuracy/` and `kappa/<combination>`; of one class
    `iou/<combination>/<class>` and `f1/<combination>/<class>`, and their means over the combinations,
    `average_iou/<class>` and `average_f1/<class>`.
    """
    combinations = results["combinations"]
    scores = {name: results[name] for name in SUMMARY_SCORES}
    for name, (key, combination, label) in _score_names(combinations, results["class_names"]).items():
        found = combinations.values() if combination is None else [combinations[combination]]
        scores[name] = mean_of_defined([one[key] if label is None else one[key][label] for one in found])
    return {name: score for name, score in scores.items() if score is not None}


def check_metric(
    args: SgmaTrainingArguments, config: SgmaConfig, eval_dataset: Sequence | Mapping[str, Sequence] | None
) -> None:
    """Refuse a `metric_for_best_model` that no evaluation would give: Trainer asks for it every time."""
    given = args.metric_for_best_model
    if given is None or args.eval_strategy == IntervalStrategy.NO or eval_dataset is None:
        return
    combinations = {"+".join(names): names for names in modality_combinations(config.modalities)}
    scores = dict.fromkeys(SUMMARY_SCORES, _Score("miou", None, None))
    scores |= _score_names(combinations, config.class_names)
    sets = eval_dataset if isinstance(eval_dataset, Mapping) else {"": eval_dataset}
    known = {f"{part}_{name}" if part else name: (part, name) for part in sets for name in scores}
    if given.removeprefix("eval_") not in known:
        part, (*names,), label = next(iter(sets)), config.modalities, config.class_names[0]
        examples = (*SUMMARY_SCORES, f"miou/{'+'.join(names)}", f"iou/{names[0]}/{label}", f"average_f1/{label}")
        listed = ", ".join(f"{part}_{name}" if part else name for name in examples)
        hint = did_you_mean(given.removeprefix("eval_"), known)
        raise ValueError(f"`metric_for_best_model` is {given!r}{hint}; expected a score such as {listed}.")
    part, name = known[given.removeprefix("eval_")]
    problem = _unscored(sets[part], scores[name], combinations, config)
    if problem:
        raise ValueError(f"`metric_for_best_model` is {given!r}, and {problem}: it is never defined. Choose another.")


def _unscored(
    rows: Sequence, score: _Score, combinations: Mapping[str, Sequence[str]], config: SgmaConfig
) -> str | None:
    """What keeps all rows from having a score, None if nothing does."""
    needed = list(combinations.get(score.combination, config.modalities))
    present = present_modalities(rows, [*needed, "label"])
    present = present & present[:, -1:]
    absent = [name for name, rows_with in zip(needed, present.T, strict=False) if not rows_with.any()]
    if absent and score.combination is not None:
        return f"no labelled row to evaluate on has {' or '.join(absent)}"
    usable = np.flatnonzero(present[:, :-1].any(1)).tolist()
    if not usable:
        return "no row to evaluate on has a label and a modality"
    if score.label is not None and not any(
        (decode_raster(rows[index]["label"], is_label=True) == score.label).any() for index in usable
    ):
        return f"no row to evaluate on has a pixel of class {config.class_names[score.label]!r}"
    return None
