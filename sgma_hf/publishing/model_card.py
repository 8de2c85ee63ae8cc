"""The model card of a run: everything in it is read from the model, its processor, and what the run recorded."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .record import TrainingRecord
from .results import results_to_markdown
from .tables import markdown_table


# A README.md without this line was written by a person.
MARKER = "<!-- Written by sgma_hf from the run itself; without this line it is left as it is. -->"
SNIPPET_SIZE = 256


def build_model_card(
    config: Any,
    processor: Any,
    record: TrainingRecord | None = None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
) -> ModelCard:
    """Write the card of a model; `str(card)` is the content of README.md.

    Scores are stated only if the record has an `evaluation`; without a record it says what is not recorded. `repo_id`
    is where the model will be found on the Hub; None is a card of a folder, whose example loads ".". `license` is that
    of the weights, as the Hub abbreviates it, `tags` are further ones of the repository.
    """
    record = record or TrainingRecord()
    name = (repo_id or "SGMA").rpartition("/")[2]
    evaluation = record.evaluation
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license=license,
        tags=list(dict.fromkeys(["sgma", "remote-sensing", "multimodal", "custom_code", *tags])),
        datasets=[record.dataset] if record.dataset_is_on_hub else None,
        base_model=record.finetuned_from if record.finetuned_from and "/" in record.finetuned_from else None,
        metrics=["mean_iou"] if evaluation else None,
        model_name=name,
        eval_results=_eval_results(evaluation) if evaluation else None,
        ignore_metadata_errors=True,
    )
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("model_card_template.md").read_text(encoding="utf-8"),
        marker=MARKER,
        name=name,
        config=config,
        processor=processor,
        record=record,
        evaluation=evaluation,
        modality_table=_modality_table(processor, record.units),
        class_table=markdown_table(["id", "class"], enumerate(map(_cell, config.class_names)), text_columns=2),
        snippet=usage_snippet(processor, repo_id or ".", dated=config.date_periods is not None),
        result_table=results_to_markdown(evaluation).strip() if evaluation else None,
        fact_table=_fact_table(record),
    )


def _eval_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """One entry per figure: Average, Top-1 and Last-1, then every combination that has a score."""
    figures = {
        "mIoU, Average over all combinations": evaluation["average_miou"],
        f"mIoU, Top-1 ({evaluation['top1_combination']})": evaluation["top1_miou"],
        f"mIoU, Last-1 ({evaluation['last1_combination']})": evaluation["last1_miou"],
    }
    figures |= {f"mIoU, {name}": scores["miou"] for name, scores in evaluation["combinations"].items()}
    dataset = evaluation.get("dataset") or "unnamed"
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation with missing modalities",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=evaluation.get("split"),
            metric_type="mean_iou",
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in figures.items()
        if value is not None
    ]


def _cell(text: Any) -> str:
    """Text that is no HTML and stays on its line."""
    return " ".join(str(text).split()).replace("<", "&lt;")


def _numbers(values: Sequence[float]) -> str:
    """One number if all are the same, else all of them."""
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _modality_table(processor: Any, units: Mapping[str, str | None]) -> str:
    header = ["modality", "bands", "unit", "level", "factor", "mean", "std", "nodata"]
    lines = [
        [
            f"`{name}`",
            processor.modality_channels[index],
            _cell(units.get(name) or "not recorded"),
            processor.reference_level[index],
            f"{processor.rescale_factor[index]:.4g}",
            _numbers(processor.image_mean[index]),
            _numbers(processor.image_std[index]),
            ", ".join(f"{value:g}" for value in processor.nodata[index]) or "none",
        ]
        for index, name in enumerate(processor.modalities)
    ]
    return markdown_table(header, lines, text_columns=len(header))


def usage_snippet(processor: Any, model: str, *, dated: bool = False) -> str:
    """Code that loads a model, by id or folder, and predicts with a modality missing; it runs as it stands.

    With `dated` the first modality is a series.
    """
    entries = []
    for index, (name, channels) in enumerate(zip(processor.modalities, processor.modality_channels, strict=True)):
        shape = (SNIPPET_SIZE, SNIPPET_SIZE) if channels == 1 else (SNIPPET_SIZE, SNIPPET_SIZE, channels)
        value = sum(processor.image_mean[index]) / channels / processor.rescale_factor[index]
        if value in processor.nodata[index]:
            value += processor.image_std[index][0] / processor.rescale_factor[index]
        raster = f"np.full({shape}, {value:.4g})"
        if dated and index == 0:
            entries.append(f'    "{name}": [{raster}] * 2,  # your rasters of one place, as many as you have')
            entries.append(f'    "{name}_dates": ["2024-04-02", "2024-06-11"],')
        else:
            entries.append(f'    "{name}": {raster},  # your raster, an array or a PIL image')
    if len(processor.modalities) > 1:
        entries[-1] = f'    "{processor.modalities[-1]}": None,  # missing'
    images = "\n".join(entries)
    return f"""import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{model}", trust_remote_code=True)
model = AutoModel.from_pretrained("{model}", trust_remote_code=True).eval()
images = {{
{images}
}}
inputs = processor(images)
with torch.no_grad():
    outputs = model(**inputs)
label_map = processor.post_process_semantic_segmentation(outputs)[0]
print(label_map.shape)  # ({SNIPPET_SIZE}, {SNIPPET_SIZE}), one class id per pixel"""


def _fact_table(record: TrainingRecord) -> str:
    facts = {
        "data set": record.dataset,
        "split": record.train_split,
        "rows": record.train_rows,
        "steps": record.steps,
        "epochs": None if record.epochs is None else f"{record.epochs:.4g}",
        "processes": record.num_processes,
        "hardware": record.hardware,
        "wall-clock time": None if record.train_seconds is None else f"{record.train_seconds:.0f} s",
        "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
        "commit": record.commit,
        **{f"`{name}`": "none" if value is None else value for name, value in record.arguments.items()},
    }
    lines = [[name, _cell("not recorded" if value in (None, "") else value)] for name, value in facts.items()]
    return markdown_table(["", ""], lines, text_columns=2)
