"""A transformers pipeline for SGMA: `pipeline("image-segmentation", model=...)`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .cells_sgma import pixel_logits


class SgmaPipeline(Pipeline):
    """Segments samples that are dicts of named, possibly missing rasters.

    A call takes one dict or a list of dicts, as [`SgmaImageProcessor`] does: `{"rgb": array, "dsm": None}`, where a
    raster is an array, a PIL image or a path, and a list of them, with `<name>_dates`, is a series. A raster alone, as
    `"scene.png"`, is the model's `rgb`, or its only modality; all others are missing then. Every sample is predicted
    as a whole; for large ones there is `sgma_hf.predict_raster`. Samples of any sizes may share a batch
    (`batch_size=8`): what is predicted for one does not depend on the others.

    A call returns a dict for each sample, with arrays of the size of its largest raster, or of the processor's `size`
    if that has `do_resize`:

    - `labels`: class ids, uint8 (height, width), 255 where no modality covers.
    - `scores`: probability of the class, float32 (height, width) in [0, 1], 0 where no modality covers.
    - `robustness`: modality -> how much it was relied on, float32 (height, width) in [0, 1], the mean over the four
      stages. Empty if the model fuses without robustness.
    - `class_names`: name of each class id.

    Example:
    ```python
    >>> from transformers import pipeline

    >>> segment = pipeline("image-segmentation", model="org/name", trust_remote_code=True)
    >>> result = segment({"rgb": "rgb.png", "dsm": None})
    >>> result["labels"].shape
    (512, 512)
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False  # None would try one, by the code in the checkpoint, and ask for trust in it
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **kwargs):
        if kwargs:
            raise ValueError(f"The pipeline knows no parameters {sorted(kwargs)}; it takes dicts of rasters alone.")
        return {}, {}, {}

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """Prepare one sample."""
        if not isinstance(inputs, Mapping):
            inputs = {self._modality_of_a_picture(inputs): inputs}
        # One entry that is no tensor: `Pipeline` lists those of a batch, where it would concatenate or pad tensors.
        return {"sample": self.image_processor(images=[dict(inputs)], return_tensors="pt")}

    def _modality_of_a_picture(self, picture: Any) -> str:
        """What a raster is that was given without a name."""
        modalities = self.image_processor.modalities
        if "rgb" not in modalities and len(modalities) > 1:
            raise TypeError(
                f"Got a {type(picture).__name__}, which may be any of {modalities}; expected a dict from modality "
                f'name to raster or None, or a list of them, such as {{"{modalities[0]}": array}}.'
            )
        return "rgb" if "rgb" in modalities else modalities[0]

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        """Predict a sample, or the list of those of a batch, which `Pipeline` hands on one by one."""
        samples = model_inputs["sample"]
        if isinstance(samples, list):
            return {"prediction": self._predict(samples)}
        return {"prediction": self._predict([samples])[0]}

    def _predict(self, samples: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Predict samples of any sizes; those whose tensors have the same shapes share a forward pass.

        Padding to one size would do with a single pass, but changes what the encoder sees of the smaller samples.
        """
        passes: dict[tuple[torch.Size, torch.Size], list[int]] = {}
        for index, sample in enumerate(samples):
            passes.setdefault((sample["pixel_values"].shape, sample["modality_mask"].shape), []).append(index)
        predictions: dict[int, dict[str, torch.Tensor]] = {}
        for indices in passes.values():
            parts = {name: [samples[index][name] for index in indices] for name in samples[indices[0]]}
            inputs = {name: torch.cat(values) for name, values in parts.items()}
            outputs = self.model(**inputs | {"pixel_values": inputs["pixel_values"].to(self.model.dtype)})
            predictions |= zip(indices, self._maps(outputs, inputs["modality_mask"]), strict=True)
        return [predictions[index] for index in range(len(samples))]

    def _maps(self, outputs: Any, modality_mask: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Per row `labels` and `scores`, (height, width), and `robustness`, (modalities, height, width), if any."""
        size = tuple(outputs.coverage.shape[-2:])
        rows = []
        for row, labels in enumerate(self.image_processor.post_process_semantic_segmentation(outputs)):
            logits = pixel_logits(outputs.logits[row : row + 1], size)[0]
            rows.append({"labels": labels, "scores": logits.softmax(0).amax(0) * outputs.coverage[row]})
        if outputs.robustness is not None:
            shares = self.image_processor.post_process_robustness(outputs, modality_mask=modality_mask)
            for row, maps in zip(rows, shares, strict=True):
                row["robustness"] = maps
        return rows

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Turn the maps of one sample into arrays."""
        maps = {name: values.cpu().numpy() for name, values in model_outputs["prediction"].items()}
        shares = maps.get("robustness")
        return {
            "labels": maps["labels"].astype(np.uint8),
            "scores": maps["scores"],
            "robustness": {} if shares is None else dict(zip(self.image_processor.modalities, shares, strict=True)),
            "class_names": self.model.config.class_names,
        }


__all__ = ["SgmaPipeline"]
