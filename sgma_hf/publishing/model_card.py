"""The model card of a run: everything in it is read from the model, its processor, and what the run recorded."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .record import TrainingRecord
from .results import results_to_markdown


# A README.md without this line was written by a person.
MARKER = "<!-- Written by sgma_hf from the run itself; without this line it is left as it is. -->"
TEMPLATE = "model_card_template.md"
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
    """Write the card of a model.

    Args:
        config: Configuration of the model.
        processor: Its image processor.
        record: What is known about the training; None where nothing is. Scores are stated only if it has an
            `evaluation`.
        repo_id: Where the model will be found on the Hub. None: the card is for a folder, and its example loads ".".
        license: Licence of the weights, as the Hub abbreviates it. None states none.
        tags: Further tags of the repository.

    Returns:
        The card; `str(card)` is the content of README.md.
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
        template_str=files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"),
        marker=MARKER,
        name=name,
        config=config,
        record=record,
        modality_table=_modality_table(processor, record.units),
        class_table=_class_table(config),
        snippet=usage_snippet(processor, repo_id or "."),
        result_table=results_to_markdown(evaluation).strip() if evaluation else None,
        evaluated_on=_evaluated_on(evaluation) if evaluation else None,
        scored_classes="labelled or predicted anywhere"
        if (evaluation or {}).get("scored_classes") == "union"
        else "labelled anywhere",
        training=_training(record),
        seen=_seen(record),
        last_modality=processor.modalities[-1],
    )


def _seen(record: TrainingRecord) -> str:
    """The data that formed the weights, as far as it is known."""
    if record.dataset is None:
        return "data that is not recorded here"
    start = record.finetuned_from or record.backbone
    return f"the data set {record.dataset}" + (f", and before that what `{start}` had" if start else " only")


def _evaluated_on(evaluation: Mapping[str, Any]) -> str:
    dataset = evaluation.get("dataset")
    split = evaluation.get("split")
    rows = f"{evaluation['rows']} rows" + (", those it was trained on" if evaluation.get("trained_on") else "")
    where = f"split `{split}`" if split else "rows that are not named"
    return f"{where} of {dataset} ({rows})" if dataset else f"{where} ({rows})"


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
    """Text that stays in its cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", r"\|").replace("<", "&lt;")


def _numbers(values: Sequence[float]) -> str:
    """One number if all are the same, else all of them."""
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _modality_table(processor: Any, units: Mapping[str, str | None]) -> str:
    lines = ["| modality | bands | unit | level | factor | mean | std | nodata |", "|---" * 8 + "|"]
    for index, name in enumerate(processor.modalities):
        cells = [
            f"`{name}`",
            processor.modality_channels[index],
            units.get(name) or "not recorded",
            processor.reference_level[index],
            f"{processor.rescale_factor[index]:.4g}",
            _numbers(processor.image_mean[index]),
            _numbers(processor.image_std[index]),
            ", ".join(f"{value:g}" for value in processor.nodata[index]) or "none",
        ]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _class_table(config: Any) -> str:
    rows = [f"| {index} | {_cell(config.id2label[index])} |" for index in range(config.num_labels)]
    return "\n".join(["| id | class |", "|---|---|", *rows])


def usage_snippet(processor: Any, model: str) -> str:
    """Code that loads a model and predicts with a modality missing; it runs as it stands.

    Args:
        processor: The model's image processor.
        model: Id on the Hub, or a folder.
    """
    entries = []
    names = processor.modalities
    for index, (name, channels) in enumerate(zip(names, processor.modality_channels, strict=True)):
        if index == len(names) - 1 and index > 0:
            entries.append(f'    "{name}": None,  # missing')
            continue
        shape = (SNIPPET_SIZE, SNIPPET_SIZE) if channels == 1 else (SNIPPET_SIZE, SNIPPET_SIZE, channels)
        value = sum(processor.image_mean[index]) / channels / processor.rescale_factor[index]
        if value in processor.nodata[index]:
            value += processor.image_std[index][0] / processor.rescale_factor[index]
        entries.append(f'    "{name}": np.full({shape}, {value:.4g}),  # your raster, an array or a PIL image')
    return "\n".join(
        [
            "import numpy as np",
            "import torch",
            "from transformers import AutoImageProcessor, AutoModel",
            "",
            f'processor = AutoImageProcessor.from_pretrained("{model}", trust_remote_code=True)',
            f'model = AutoModel.from_pretrained("{model}", trust_remote_code=True).eval()',
            "images = {",
            *entries,
            "}",
            "inputs = processor(images)",
            "with torch.no_grad():",
            "    outputs = model(**inputs)",
            "label_map = processor.post_process_semantic_segmentation(outputs)[0]",
            f"print(label_map.shape)  # ({SNIPPET_SIZE}, {SNIPPET_SIZE}), one class id per pixel",
        ]
    )


def _training(record: TrainingRecord) -> str:
    if record.steps is None:
        return "How these weights were trained is not recorded."
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
        **{f"`{name}`": value for name, value in record.arguments.items()},
    }
    rows = [f"| {name} | {_cell('not recorded' if value in (None, '') else value)} |" for name, value in facts.items()]
    command = f"```bash\n{record.command}\n```" if record.command else "The command is not recorded."
    return "\n".join([command, "", "| | |", "|---|---|", *rows])
