"""SGMA for transformers: segmentation of remote-sensing scenes when modalities are missing (arXiv:2603.02505).

Importing this package registers the model with transformers' Auto classes. What trains and evaluates is imported at
its first use: it brings accelerate and datasets along, which prediction does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_sgma import SgmaConfig
from .image_processing_sgma import SgmaImageProcessor
from .modeling_sgma import SgmaForSemanticSegmentation, SgmaModel, SgmaPreTrainedModel
from .outputs_sgma import SgmaModelOutput, SgmaSemanticSegmenterOutput
from .pipeline_sgma import PIPELINE_TASK, SgmaPipeline


if TYPE_CHECKING:
    from .agreement import modality_agreement
    from .agreement_evaluation import evaluate_agreement
    from .data_collator import SgmaDataCollator
    from .evaluate_metric import SgmaMeanIou
    from .evaluation import evaluate_modality_combinations, modality_combinations
    from .inference import sliding_window_logits
    from .metrics import confusion_matrix, segmentation_scores
    from .raster import predict_raster
    from .trainer import SgmaTrainer
    from .training_args import SgmaTrainingArguments

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
    "SgmaDataCollator": "data_collator",
    "SgmaMeanIou": "evaluate_metric",
    "SgmaTrainer": "trainer",
    "SgmaTrainingArguments": "training_args",
    "confusion_matrix": "metrics",
    "evaluate_agreement": "agreement_evaluation",
    "evaluate_modality_combinations": "evaluation",
    "modality_agreement": "agreement",
    "modality_combinations": "evaluation",
    "predict_raster": "raster",
    "segmentation_scores": "metrics",
    "sliding_window_logits": "inference",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


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
    "confusion_matrix",
    "evaluate_agreement",
    "evaluate_modality_combinations",
    "modality_agreement",
    "modality_combinations",
    "predict_raster",
    "segmentation_scores",
    "sliding_window_logits",
]
