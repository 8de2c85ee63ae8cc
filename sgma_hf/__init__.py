"""SGMA for transformers: segmentation of remote-sensing scenes when modalities are missing (arXiv:2603.02505).

Importing this package registers the model with transformers' Auto classes. What trains and evaluates is imported at
its first use: it brings accelerate and datasets along, which prediction does not need.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_sgma import SgmaConfig
from .model.image_processing_sgma import SgmaImageProcessor
from .model.modeling_sgma import SgmaForSemanticSegmentation, SgmaModel, SgmaPreTrainedModel
from .model.outputs_sgma import SgmaModelOutput, SgmaSemanticSegmenterOutput
from .model.pipeline_sgma import PIPELINE_TASK, SgmaPipeline


if TYPE_CHECKING:
    from .data.codec import encode_raster
    from .data.rows import decode_row, load_rows
    from .evaluation.agreement_scores import evaluate_agreement
    from .evaluation.combinations import evaluate_modality_combinations, modality_combinations
    from .evaluation.mean_iou_metric import SgmaMeanIou
    from .evaluation.metrics import confusion_matrix, segmentation_scores
    from .evaluation.scenes import evaluate_scene
    from .prediction.agreement import modality_agreement
    from .prediction.explanation import explain_pixel
    from .prediction.maps import predict_raster
    from .prediction.sliding_window import sliding_window_logits
    from .training.arguments import SgmaTrainingArguments
    from .training.collator import SgmaDataCollator
    from .training.trainer import SgmaTrainer
    from .visualization.boards import plot_modality_board
    from .visualization.palette import colorize

__version__ = "0.1.0"

AutoConfig.register("sgma", SgmaConfig, exist_ok=True)
AutoModel.register(SgmaConfig, SgmaForSemanticSegmentation, exist_ok=True)
AutoModelForSemanticSegmentation.register(SgmaConfig, SgmaForSemanticSegmentation, exist_ok=True)
AutoImageProcessor.register(SgmaConfig, image_processor_classes={"pil": SgmaImageProcessor}, exist_ok=True)

# These files travel with every checkpoint, so that it also loads, with `trust_remote_code=True`, without this package.
SgmaConfig.register_for_auto_class()
SgmaModel.register_for_auto_class("AutoModel")
SgmaForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
SgmaImageProcessor.register_for_auto_class()
PIPELINE_REGISTRY.register_pipeline(
    PIPELINE_TASK, pipeline_class=SgmaPipeline, pt_model=AutoModelForSemanticSegmentation, type="multimodal"
)

_MODULES = {
    "SgmaDataCollator": "training.collator",
    "SgmaMeanIou": "evaluation.mean_iou_metric",
    "SgmaTrainer": "training.trainer",
    "SgmaTrainingArguments": "training.arguments",
    "colorize": "visualization.palette",
    "confusion_matrix": "evaluation.metrics",
    "decode_row": "data.rows",
    "encode_raster": "data.codec",
    "evaluate_agreement": "evaluation.agreement_scores",
    "evaluate_modality_combinations": "evaluation.combinations",
    "evaluate_scene": "evaluation.scenes",
    "explain_pixel": "prediction.explanation",
    "load_rows": "data.rows",
    "modality_agreement": "prediction.agreement",
    "modality_combinations": "evaluation.combinations",
    "plot_modality_board": "visualization.boards",
    "predict_raster": "prediction.maps",
    "segmentation_scores": "evaluation.metrics",
    "sliding_window_logits": "prediction.sliding_window",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


# Cards of data sets that are already published import `decode_row` and `load_rows` from here.
_former = types.ModuleType("sgma_hf.dataset_schema")
_former.__getattr__ = __getattr__
sys.modules[_former.__name__] = _former


__all__ = [
    "SgmaConfig",
    "SgmaDataCollator",
    "SgmaForSemanticSegmentation",
    "SgmaImageProcessor",
    "SgmaMeanIou",
    "SgmaModel",
    "SgmaModelOutput",
    "SgmaPipeline",
    "SgmaPreTrainedModel",
    "SgmaSemanticSegmenterOutput",
    "SgmaTrainer",
    "SgmaTrainingArguments",
    "colorize",
    "confusion_matrix",
    "decode_row",
    "encode_raster",
    "evaluate_agreement",
    "evaluate_modality_combinations",
    "evaluate_scene",
    "explain_pixel",
    "load_rows",
    "modality_agreement",
    "modality_combinations",
    "plot_modality_board",
    "predict_raster",
    "segmentation_scores",
    "sliding_window_logits",
]
