"""Why a pixel got its class: what it was relied on for, what it resembles, and what each modality changes."""

from collections.abc import Mapping
from typing import Any

import torch

from ..model.cells_sgma import STAGE_STRIDES, pixel_logits


@torch.no_grad()
def explain_pixel(
    model: Any, processor: Any, images: Mapping[str, Any], x: int, y: int, *, num_prototypes: int = 3
) -> dict[str, Any]:
    """Take the prediction of one pixel apart.

    The sample is encoded once; a modality is left out by fusing the others, so what is missing is absent, not zero.

    Args:
        model: An SGMA model with a segmentation head, in eval mode.
        processor: Its image processor.
        images: Raster per modality, as the processor takes them; None or no entry for what is missing.
        x: Column of the pixel on the grid of the largest raster, from 0.
        y: Row.
        num_prototypes: How many of the nearest class prototypes to name.

    Returns:
        A dictionary that JSON can hold:

        - `x`, `y`, and `modalities`, those that cover the pixel.
        - `class`, the class that has the highest score, and `scores`, class -> probability in [0, 1].
        - `without`: modality -> `class` and `scores` if that one is left out, None if nothing covers the pixel then.
          A covering modality whose absence changes the class was decisive.
        - `stages`: for each of the four stages `stride` in pixels; `robustness`, modality -> share in [0, 1] in the
          cell that holds the pixel (None without robustness); and `nearest_prototypes`, modality -> list of class and
          cosine similarity in [-1, 1] between the modality's projected feature and the sample's class prototypes,
          nearest first. With one modality the model makes no prototypes, and this is None.

    Raises:
        ValueError: If the pixel lies outside the image, or no modality covers it.
    """
    inputs = processor(images=[dict(images)], do_resize=False, return_tensors="pt")
    pixel_values = inputs["pixel_values"].to(model.device, model.dtype)
    mask = inputs["modality_mask"].to(model.device)
    height, width = pixel_values.shape[-2:]
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"Pixel (x={x}, y={y}) lies outside the image of {width} x {height} pixels.")
    modalities = list(processor.modalities)
    covering = mask[0, :, y, x] if mask.ndim == 4 else mask[0]
    covering = [name for name, covers in zip(modalities, covering.tolist(), strict=True) if covers]
    if not covering:
        raise ValueError(f"No modality covers pixel (x={x}, y={y}); there is nothing to explain.")
    encoding = model.encode(pixel_values, mask)
    outputs = model.fuse_and_decode(encoding, output_prototypes=True)
    without: dict[str, Any] = {}
    for left_out in covering:
        rest = [name for name in covering if name != left_out]
        subset = torch.tensor([name != left_out for name in modalities], device=model.device)
        without[left_out] = _scores(model, model.fuse_and_decode(encoding, subset), x, y) if rest else None

    def shares(values: torch.Tensor) -> dict[str, float]:
        return dict(zip(modalities, values.tolist(), strict=True))

    stages = [
        {
            "stride": stride,
            "robustness": outputs.robustness and shares(outputs.robustness[stage][0, :, y // stride, x // stride]),
            "nearest_prototypes": _nearest(model, encoding, outputs, stage, x // stride, y // stride, num_prototypes),
        }
        for stage, stride in enumerate(STAGE_STRIDES)
    ]
    everything = _scores(model, outputs, x, y)
    return {"x": x, "y": y, "modalities": covering} | everything | {"without": without, "stages": stages}


def _scores(model: Any, outputs: Any, x: int, y: int) -> dict[str, Any]:
    size = tuple(outputs.coverage.shape[-2:])
    logits = pixel_logits(outputs.logits, size)[0, :, y, x]
    names = model.config.class_names
    scores = dict(zip(names, logits.softmax(0).tolist(), strict=True))
    return {"class": names[int(logits.argmax())], "scores": scores}


def _nearest(
    model: Any, encoding: Any, outputs: Any, stage: int, column: int, row: int, count: int
) -> dict[str, list[dict[str, Any]]] | None:
    """Per modality that is there, the classes whose prototypes are nearest to its feature in a cell."""
    if outputs.prototypes is None:
        return None
    tokens, prototypes, names = encoding.stages[stage], outputs.prototypes[stage][0], model.config.class_names
    cell = row * tokens.size[1] + column
    found = {}
    for index, modality in enumerate(model.config.modalities):
        pair = int(encoding.position[0, index])
        covered = encoding.fractions is None or bool(encoding.fractions[stage][0, index, row, column] > 0)
        if pair < 0 or not covered:
            continue
        feature = tokens.tokens[pair, cell].float().unsqueeze(0)
        similarity = torch.nn.functional.cosine_similarity(feature, prototypes.float())  # (K,)
        best = similarity.argsort(descending=True)[:count].tolist()
        found[modality] = [{"class": names[label], "similarity": float(similarity[label])} for label in best]
    return found
