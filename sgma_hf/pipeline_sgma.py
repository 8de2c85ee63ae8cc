"""A transformers pipeline for SGMA: `pipeline("multimodal-segmentation", model=...)`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import Pipeline

from .decode_head_sgma import upsample_to_pixels


PIPELINE_TASK = "multimodal-segmentation"
LOGITS_STRIDE = 4  # pixels per cell of the logits


class SgmaPipeline(Pipeline):
    """Segments samples that are dicts of named, possibly missing rasters.

    A call takes one dict or a list of dicts, as [`SgmaImageProcessor`] does: `{"rgb": array, "dsm": None}`, where a
    raster is an array, a PIL image or a path. Every sample is predicted as a whole; for large ones there is
    `sgma_hf.raster.predict_raster`.

    A call returns a dict for each sample, with arrays of the size of its largest raster:

    - `labels`: class ids, uint8 (height, width), 255 where no modality covers.
    - `scores`: probability of the class, float32 (height, width) in [0, 1], 0 where no modality covers.
    - `robustness`: modality -> how much it was relied on, float32 (height, width) in [0, 1], the mean over the four
      stages. Empty if the model fuses without robustness.
    - `class_names`: name of each class id.

    Example:
    ```python
    >>> from transformers import pipeline

    >>> segment = pipeline("multimodal-segmentation", model="org/name", trust_remote_code=True)
    >>> result = segment({"rgb": "rgb.png", "dsm": None})
    >>> result["labels"].shape
    (512, 512)
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **kwargs):
        if kwargs:
            raise ValueError(f"The pipeline knows no parameters {sorted(kwargs)}; it takes dicts of rasters alone.")
        return {}, {}, {}

    def preprocess(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Prepare one sample."""
        if not isinstance(inputs, Mapping):
            raise TypeError(
                f"Got a {type(inputs).__name__}; expected a dict from modality name to raster or None, or a list of "
                f'them, such as {{"{self.image_processor.modalities[0]}": array}}.'
            )
        return dict(self.image_processor(images=[dict(inputs)], return_tensors="pt"))

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        pixel_values = model_inputs["pixel_values"].to(self.model.dtype)
        return self.model(pixel_values=pixel_values, modality_mask=model_inputs["modality_mask"])

    def postprocess(self, model_outputs: Any) -> dict[str, Any]:
        """Turn the model's output into arrays."""
        processor, config = self.image_processor, self.model.config
        (labels,) = processor.post_process_semantic_segmentation(model_outputs)
        size = tuple(model_outputs.coverage.shape[-2:])
        scores = upsample_to_pixels(model_outputs.logits.float(), LOGITS_STRIDE, size)[0].softmax(0)
        labels = labels.cpu().numpy().astype(np.uint8)
        robustness = {}
        if model_outputs.get("robustness") is not None:  # `Pipeline` drops what is None
            (shares,) = processor.post_process_robustness(model_outputs)
            robustness = dict(zip(processor.modalities, shares.cpu().numpy(), strict=True))
        return {
            "labels": labels,
            "scores": np.where(labels == 255, np.float32(0), scores.amax(0).cpu().numpy()),
            "robustness": robustness,
            "class_names": [str(config.id2label[index]) for index in range(config.num_labels)],
        }


__all__ = ["SgmaPipeline"]
