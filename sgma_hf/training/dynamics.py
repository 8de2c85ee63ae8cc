"""How each modality learns over training: what the paper names as its first limitation that it cannot show.

One record per epoch, from the sums of `TrainingStatistics`, so exact over all processes and after a resume:

- for each modality: mean robustness in the cells that it shares with others (alone, it is 1), also per class of the
  pixels; cross-entropy and IoU of the predictions from it alone, both also per class, wherever modality-aware sampling
  drew it (of training crops, while the weights change: to compare modalities and epochs, not to report); and the
  gradient norm of its projectors and stem after clipping, as root mean square over the steps that had one.
- `single_loss` is the mean over rows of what the model is trained on (`EpochStatistics`). IoU and all figures per
  class are of one pixel per cell of stride 4, and `class_single_loss` is the plain cross-entropy there.
- for each stage: prototype drift, the mean over the classes of 1 - cosine(mean prototype of this epoch, of the last
  one), over the rows with two modalities at least.

And one record per evaluation: Average, Last-1 and Top-1 (mIoU), and the separation: for each modality and stage the
silhouette (Rousseeuw 1987) of a sample of pixels by the class of their label, in the features that go into fusion (the
projectors' output). The paper (arXiv:2603.02505) reports silhouettes of height and near infrared, but not of what
stage or sample; those are ours.

What a model does not have, and what no row showed, is None. The training loss is recorded per logging step, as the
mean since the last one.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.evaluation_mode import evaluating
from ..data.rows import decode_row
from ..data.whole_files import write_json
from ..evaluation.metrics import segmentation_scores
from ..evaluation.prepared_rows import PreparedRow
from ..model.cells_sgma import STAGE_STRIDES
from ..model.dates_sgma import observations


DYNAMICS_FILE = "learning_dynamics.json"
SEPARATION_PIXELS = 1024
SEPARATION_ROWS = 32
_RECORDED = ("modalities", "class_names", "steps", "epochs", "evaluations")
_SCALARS = ("robustness", "single_loss", "single_miou", "gradient_norm")
_PER_CLASS = ("class_robustness", "class_single_loss", "single_iou")
_MODALITY_PARAMETER = re.compile(r"(?:^|\.)(?:stems|projectors)\.(\d+)\.")


@dataclass
class LearningDynamics:
    """The records of a run so far, oldest first; they are saved with every checkpoint."""

    modalities: list[str]
    class_names: list[str]
    steps: list[dict[str, float]] = field(default_factory=list)  # `step`, `epoch` and `loss` of each logging step
    epochs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    prototypes: list[list] | None = None  # the last epoch's means, (num_labels, channels) of each stage

    def add_epoch(self, summary: Mapping[str, Any], *, epoch: float, step: int) -> dict[str, float]:
        """Record the `TrainingStatistics.summary` of an epoch that has ended, by epochs and steps trained.

        Returns what goes to the log, without the figures per class and what is None.
        """
        modalities = {name: _modality_record(summary, index) for index, name in enumerate(self.modalities)}
        prototypes = summary["prototypes"]
        drift = None
        if prototypes is not None:
            if self.prototypes is not None:
                pairs = zip(prototypes, self.prototypes, strict=True)
                drift = [prototype_drift(new, np.array(old)) for new, old in pairs]
            self.prototypes = [stage.tolist() for stage in prototypes]
        self.epochs.append({"epoch": epoch, "step": step, "modalities": modalities, "prototype_drift": drift})
        logs = {f"dynamics/{key}/{name}": modalities[name][key] for key in _SCALARS for name in self.modalities}
        logs |= {f"dynamics/prototype_drift/stage{stage}": value for stage, value in enumerate(drift or [], start=1)}
        return {name: value for name, value in logs.items() if value is not None}

    def add_evaluation(
        self,
        separation: Mapping[str, list[float | None]],
        scores: Mapping[str, float | None],
        *,
        epoch: float,
        step: int,
        name: str,
    ) -> dict[str, float]:
        """Record what `feature_separation` returned and the scores, in place of those of the same step and name.

        Returns what goes to the log, without the scores.
        """
        same = [record for record in self.evaluations if (record["step"], record["name"]) == (step, name)]
        if not same:
            same = [{"epoch": epoch, "step": step, "name": name}]
            self.evaluations += same
        same[0] |= {"separation": dict(separation), "scores": dict(scores)}
        return {
            f"dynamics/separation/{modality}/stage{stage}": value
            for modality, values in separation.items()
            for stage, value in enumerate(values, start=1)
            if value is not None
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, for a checkpoint."""
        return {name: getattr(self, name) for name in ("steps", "epochs", "evaluations", "prototypes")}

    def load(self, values: Mapping[str, Any]) -> None:
        """Take over what `to_dict` wrote."""
        self.steps = values.get("steps", [])  # earlier versions did not record them
        self.epochs, self.evaluations = values["epochs"], values["evaluations"]
        self.prototypes = values["prototypes"]

    def save(self, directory: str | os.PathLike) -> None:
        """Write `learning_dynamics.json` into the run's folder, whole or not at all."""
        write_json(Path(directory) / DYNAMICS_FILE, self.record())

    def record(self) -> dict[str, Any]:
        """What `read_learning_dynamics` reads back."""
        return {name: getattr(self, name) for name in _RECORDED}


def read_learning_dynamics(directory: str | os.PathLike) -> dict[str, Any]:
    """Read `modalities`, `class_names`, `steps`, `epochs` and `evaluations` of a run's folder; see `LearningDynamics`.

    Raises a ValueError if it has no such file, or one of something else.
    """
    path = Path(directory) / DYNAMICS_FILE
    if not path.is_file():
        raise ValueError(
            f"{str(directory)!r} has no {DYNAMICS_FILE}; expected the `--output_dir` of a training run of which at "
            "least one epoch has ended."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record = {name: record[name] for name in _RECORDED if name != "steps"} | {"steps": record.get("steps", [])}
        _check_record(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no record of learning dynamics: {error!r}. Train again to write it.") from error
    return record


def _check_record(record: Mapping[str, Any]) -> None:
    """Raise one of the errors of a wrong type, key or value if a record is not what `LearningDynamics` writes."""
    names, num_labels = record["modalities"], len(record["class_names"])
    for entry in record["steps"]:
        _check_numbers([entry["epoch"], entry["step"], entry["loss"]], 3)
    for entry in record["epochs"]:
        _check_numbers([entry["epoch"], entry["step"]], 2)
        _check_numbers(entry["prototype_drift"], len(STAGE_STRIDES))
        for figures in (entry["modalities"][name] for name in names):
            _check_numbers([figures[key] for key in _SCALARS], len(_SCALARS))
            for key in _PER_CLASS:
                _check_numbers(figures[key], num_labels)
    for entry in record["evaluations"]:
        scores = entry.setdefault("scores", {})
        _check_numbers([entry["epoch"], entry["step"], *scores.values()], 2 + len(scores))
        for name in names:
            _check_numbers(entry["separation"][name], len(STAGE_STRIDES))


def _check_numbers(values: Sequence[float | None] | None, count: int) -> None:
    """Raise a ValueError unless these are so many numbers, or Nones, or nothing at all."""
    if values is not None and (
        len(values) != count or not all(value is None or isinstance(value, int | float) for value in values)
    ):
        raise ValueError(f"{values} are not {count} numbers")


def modality_parameters(model: torch.nn.Module, num_modalities: int) -> list[list[torch.nn.Parameter]]:
    """List the trained parameters that one modality alone has, its stem and projectors, for each modality.

    By name, because a model that came with its checkpoint is of another class, and one that is wrapped is too.
    """
    groups: list[list[torch.nn.Parameter]] = [[] for _ in range(num_modalities)]
    for name, parameter in model.named_parameters():
        match = _MODALITY_PARAMETER.search(name)
        if match and int(match[1]) < num_modalities and parameter.requires_grad and "backbone" not in name:
            groups[int(match[1])].append(parameter)
    return groups


def prototype_drift(prototypes: np.ndarray, earlier: np.ndarray) -> float | None:
    """How far (num_labels, channels) turned: the classes' mean of 1 - cosine, in [0, 2]; None if one is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (prototypes * earlier).sum(1) / (np.linalg.norm(prototypes, axis=1) * np.linalg.norm(earlier, axis=1))
    return _known(1 - cosine.mean())


def silhouette(features: torch.Tensor, classes: torch.Tensor, *, chunk_size: int = 1024) -> float | None:
    """Mean silhouette in [-1, 1] of points (num_points, channels) in classes (num_points,), by Euclidean distance.

    A point's is (b - a) / max(a, b), with a its mean distance to the others of its class and b the smallest of its
    mean distances to the other classes; 0 for the only point of a class. None if there are fewer than two classes, or
    a feature is not finite. `chunk_size` points have their distances in memory at a time.
    """
    present, index, counts = classes.unique(return_inverse=True, return_counts=True)
    if len(present) < 2:
        return None
    features = features.float()
    members = torch.nn.functional.one_hot(index, len(present)).to(features.dtype)  # (N, K)
    total = torch.zeros((), dtype=features.dtype, device=features.device)
    for part, own in zip(features.split(chunk_size), index.split(chunk_size), strict=True):
        # By differences: through products, equal points would get a distance of rounding errors.
        distances = torch.cdist(part, features, compute_mode="donot_use_mm_for_euclid_dist")  # (n, N)
        sums = distances @ members  # (n, K)
        within = sums.gather(1, own[:, None]).squeeze(1) / (counts[own] - 1).clamp_min(1)
        nearest = (sums / counts).scatter(1, own[:, None], torch.inf).amin(1)
        scores = (nearest - within) / torch.maximum(nearest, within)
        undefined = (counts[own] == 1) | ((nearest == 0) & (within == 0))
        total += torch.where(undefined, 0, scores).sum()
    return _known(total.item() / len(features))


def feature_separation(
    model: PreTrainedModel, processor: BaseImageProcessor, dataset: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> dict[str, list[float | None]]:
    """Silhouettes of the four stages by modality, see the module's docstring; None with fewer than two classes.

    1024 labelled pixels at most, spread evenly over 32 rows at most (one window of the model's tile size each, or the
    whole row), the same for all stages and for all modalities that cover them. Of a series, a pixel has the mean of
    the dates that cover it. Rows without a label or without any modality are passed over. Every process of a
    distributed run does the same and needs no other.
    """
    config = model.config
    features: list[list[list[torch.Tensor]]] = [[[] for _ in STAGE_STRIDES] for _ in config.modalities]
    classes: list[list[torch.Tensor]] = [[] for _ in config.modalities]
    with evaluating(model):
        for batch, pixels in _sampled_windows(dataset, processor, config, seed):
            encoding = model.encode(**batch.on_device_of(model).inputs(model.config))
            position = encoding.position.view(-1, len(config.modalities))  # (T, M), a series of one without dates
            masks = batch.pixel_mask.view(*position.shape, *batch.labels.shape[-2:])
            for modality, packed in enumerate(position.unbind(1)):
                covers = masks[packed.cpu() >= 0, modality][:, pixels[:, 0], pixels[:, 1]]  # (dates, pixels)
                if not len(covers):
                    continue
                seen, covers = pixels[covers.any(0)], covers[:, covers.any(0)].to(model.device)
                rows, columns = seen.to(model.device).unbind(1)
                for parts, stage, stride in zip(features[modality], encoding.stages, STAGE_STRIDES, strict=True):
                    cells = rows // stride * stage.size[1] + columns // stride
                    tokens = stage.tokens[packed[packed >= 0][:, None], cells]  # (dates, pixels, C)
                    parts.append((tokens * covers.unsqueeze(2)).sum(0) / covers.sum(0).unsqueeze(1))
                classes[modality].append(batch.labels[0][seen[:, 0], seen[:, 1]].to(model.device))
    return {
        name: [silhouette(torch.cat(parts), torch.cat(labels)) if parts else None for parts in stages]
        for name, stages, labels in zip(config.modalities, features, classes, strict=True)
    }


def _sampled_windows(
    dataset: Sequence, processor: BaseImageProcessor, config: Any, seed: int
) -> Iterator[tuple[PreparedRow, torch.Tensor]]:
    """Yield batches of one window, and the pixels (n, 2), row and column, that were drawn in each."""
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:SEPARATION_ROWS].tolist()
    for index in sorted(chosen):
        images, label = decode_row(dataset[index], config.modalities)
        if label is None or not any(observations(images, name) for name in config.modalities):
            continue
        generator = np.random.default_rng([seed, index])
        window = None
        if config.tile_size is not None:
            extents = [min(side, config.tile_size) for side in label.shape]
            starts = [generator.integers(side - extent + 1) for side, extent in zip(label.shape, extents, strict=True)]
            window = (*map(int, starts), *extents)
        options = {"windows": [window], "do_resize": False, "return_tensors": "pt"}
        inputs = processor(images=[images], segmentation_maps=[label], **options)
        fields = (inputs[name] for name in ("pixel_values", "modality_mask", "labels"))
        batch = PreparedRow(*fields, torch.tensor([[index, 0, 0]]), inputs.get("dates"))
        pixels = ((batch.labels != config.semantic_loss_ignore_index) & batch.covered.any(1))[0].nonzero()
        if len(pixels):
            count = min(len(pixels), SEPARATION_PIXELS // len(chosen))
            yield batch, pixels[torch.from_numpy(generator.permutation(len(pixels))[:count])]


def _modality_record(summary: Mapping[str, Any], index: int) -> dict[str, Any]:
    def by_class(name: str) -> list[float | None] | None:
        values = [_known(value) for value in summary[name][index]]
        return None if set(values) == {None} else values

    scores = segmentation_scores(summary["single_confusion"][index].astype(np.int64))
    return {
        "robustness": _known(summary["robustness"][index]),
        "class_robustness": by_class("class_robustness"),
        "single_loss": _known(summary["single_loss"][index]),
        "class_single_loss": by_class("class_single_loss"),
        "single_miou": scores["miou"],
        "single_iou": scores["iou"] if scores["pixels"] else None,
        "gradient_norm": _known(np.sqrt(summary["squared_gradients"][index])),
    }


def _known(value: float) -> float | None:
    """The number for JSON; None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None
