"""SGMA for transformers: segmentation of remote-sensing scenes when modalities are missing (arXiv:2603.02505).

After `import sgma_hf`, transformers' Auto classes and `pipeline` know the model. Importing the package itself costs
next to nothing: each public name is imported at its first use, and the model is registered when transformers' Auto
classes are there, whether they were imported before this package or are imported after it.
"""

import importlib
import sys
import threading
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .data.codec import encode_raster
    from .data.rows import decode_row, load_rows
    from .evaluation.agreement_scores import evaluate_agreement
    from .evaluation.change import map_change
    from .evaluation.combinations import evaluate_modality_combinations, modality_combinations
    from .evaluation.mean_iou_metric import SgmaMeanIou
    from .evaluation.metrics import confusion_matrix, segmentation_scores
    from .evaluation.protocols import evaluate_protocols
    from .evaluation.scenes import evaluate_scene
    from .model.configuration_sgma import SgmaConfig
    from .model.fusion_sgma import SgmaFusion, register_fusion
    from .model.fusion_stages_sgma import SemanticGuidedFusion
    from .model.image_processing_sgma import SgmaImageProcessor
    from .model.losses_sgma import modality_aware_sampling
    from .model.modeling_sgma import SgmaForSemanticSegmentation, SgmaModel, SgmaPreTrainedModel
    from .model.outputs_sgma import SgmaModelOutput, SgmaSemanticSegmenterOutput
    from .model.pipeline_sgma import SgmaPipeline
    from .prediction.agreement import modality_agreement
    from .prediction.explanation import explain_pixel
    from .prediction.maps import predict_raster
    from .prediction.sliding_window import sliding_window_logits
    from .training.arguments import SgmaTrainingArguments
    from .training.collator import SgmaDataCollator
    from .training.trainer import SgmaTrainer
    from .visualization.boards import plot_modality_board
    from .visualization.palette import colorize

__version__ = "0.5.0"

_MODULES = {
    "SemanticGuidedFusion": "model.fusion_stages_sgma",
    "SgmaConfig": "model.configuration_sgma",
    "SgmaDataCollator": "training.collator",
    "SgmaForSemanticSegmentation": "model.modeling_sgma",
    "SgmaFusion": "model.fusion_sgma",
    "SgmaImageProcessor": "model.image_processing_sgma",
    "SgmaMeanIou": "evaluation.mean_iou_metric",
    "SgmaModel": "model.modeling_sgma",
    "SgmaModelOutput": "model.outputs_sgma",
    "SgmaPipeline": "model.pipeline_sgma",
    "SgmaPreTrainedModel": "model.modeling_sgma",
    "SgmaSemanticSegmenterOutput": "model.outputs_sgma",
    "SgmaTrainer": "training.trainer",
    "SgmaTrainingArguments": "training.arguments",
    "colorize": "visualization.palette",
    "confusion_matrix": "evaluation.metrics",
    "decode_row": "data.rows",
    "encode_raster": "data.codec",
    "evaluate_agreement": "evaluation.agreement_scores",
    "evaluate_modality_combinations": "evaluation.combinations",
    "evaluate_protocols": "evaluation.protocols",
    "evaluate_scene": "evaluation.scenes",
    "explain_pixel": "prediction.explanation",
    "load_rows": "data.rows",
    "map_change": "evaluation.change",
    "modality_agreement": "prediction.agreement",
    "modality_aware_sampling": "model.losses_sgma",
    "modality_combinations": "evaluation.combinations",
    "plot_modality_board": "visualization.boards",
    "predict_raster": "prediction.maps",
    "register_fusion": "model.fusion_sgma",
    "segmentation_scores": "evaluation.metrics",
    "sliding_window_logits": "prediction.sliding_window",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_model() -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

    from .model.configuration_sgma import SgmaConfig
    from .model.image_processing_sgma import SgmaImageProcessor
    from .model.modeling_sgma import SgmaForSemanticSegmentation, SgmaModel

    AutoConfig.register("sgma", SgmaConfig, exist_ok=True)
    AutoModel.register(SgmaConfig, SgmaForSemanticSegmentation, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SgmaConfig, SgmaForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(SgmaConfig, image_processor_classes={"pil": SgmaImageProcessor}, exist_ok=True)
    # Their files travel with every checkpoint: it also loads without this package, with `trust_remote_code=True`.
    SgmaConfig.register_for_auto_class()
    SgmaModel.register_for_auto_class("AutoModel")
    SgmaForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
    SgmaImageProcessor.register_for_auto_class()


def _register_pipeline() -> None:
    from transformers import AutoModelForSemanticSegmentation, ImageSegmentationPipeline
    from transformers.pipelines import PIPELINE_REGISTRY

    from .model.configuration_sgma import PIPELINE_TASK
    from .model.pipeline_sgma import SgmaPipeline

    class _ImageSegmentation(ImageSegmentationPipeline):
        """The task of the Hub's snippet: [`SgmaPipeline`] for models of this package, else what transformers has."""

        _load_video_processor = False  # as in `SgmaPipeline`

        def __new__(cls, *, model, **kwargs):
            of_this_package = model.config.model_type == "sgma"
            return (SgmaPipeline if of_this_package else ImageSegmentationPipeline)(model=model, **kwargs)

    PIPELINE_REGISTRY.supported_tasks[PIPELINE_TASK]["impl"] = _ImageSegmentation
    PIPELINE_REGISTRY.register_pipeline(
        "multimodal-segmentation",
        pipeline_class=SgmaPipeline,
        pt_model=AutoModelForSemanticSegmentation,
        type="multimodal",
    )


class _Registration(threading.local):
    """Registers with a module of transformers once it is imported, and nothing beneath it is half imported.

    The model's own files import transformers, and modules of transformers import each other: registering as soon as a
    module is there would come upon others that are not yet.
    """

    depth = 0  # how many imports of transformers and of the model are under way in this thread

    def __init__(self, waiting: dict[str, Callable[[], None]]):
        self.waiting = waiting  # the same one in all threads

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that other finders have, whose import registers at its end what can be registered."""
        if not fullname.startswith(("transformers.", f"{__name__}.model.")):
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.execute(execute, module)
        return spec

    def execute(self, execute: Callable[[types.ModuleType], None], module: types.ModuleType) -> None:
        """Run a module's code, and register when it was the outermost one."""
        self.depth += 1
        try:
            execute(module)
            if self.depth == 1:
                self.register()
        finally:
            self.depth -= 1

    def register(self) -> None:
        """Register with all that is imported by now."""
        for name, register in list(self.waiting.items()):
            if name in sys.modules:
                register()
                self.waiting.pop(name, None)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


_registration = _Registration(
    {"transformers.models.auto.configuration_auto": _register_model, "transformers.pipelines": _register_pipeline}
)
sys.meta_path.insert(0, _registration)
_registration.register()

# Cards of data sets that are already published import `decode_row` and `load_rows` from here.
_former = types.ModuleType("sgma_hf.dataset_schema")
_former.__getattr__ = __getattr__
sys.modules[_former.__name__] = _former

__all__ = [
    "SemanticGuidedFusion",
    "SgmaConfig",
    "SgmaDataCollator",
    "SgmaForSemanticSegmentation",
    "SgmaFusion",
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
    "evaluate_protocols",
    "evaluate_scene",
    "explain_pixel",
    "load_rows",
    "map_change",
    "modality_agreement",
    "modality_aware_sampling",
    "modality_combinations",
    "plot_modality_board",
    "predict_raster",
    "register_fusion",
    "segmentation_scores",
    "sliding_window_logits",
]
