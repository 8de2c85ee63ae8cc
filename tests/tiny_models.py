"""SGMA models small enough to run hundreds of times in a test."""

import torch

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation


PVT_V2 = {
    "model_type": "pvt_v2",
    "hidden_sizes": [8, 16, 16, 24],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "hidden_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}


def tiny_config(**changes) -> SgmaConfig:
    """RGB, height and SAR (3 + 1 + 2 channels), 5 classes, a four-block PVT-v2; `changes` override."""
    values = {
        "modalities": ["rgb", "dsm", "sar"],
        "modality_channels": [3, 1, 2],
        "num_labels": 5,
        "backbone_config": PVT_V2,
        "num_attention_heads": 2,
        "decoder_hidden_size": 16,
        "classifier_dropout_prob": 0.0,
    }
    return SgmaConfig(**{**values, **changes})


def tiny_model(seed: int = 0, **changes) -> SgmaForSemanticSegmentation:
    """A model of `tiny_config`, in evaluation mode, with weights that `seed` decides."""
    torch.manual_seed(seed)
    return SgmaForSemanticSegmentation(tiny_config(**changes)).eval()


def spread_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter random values of order 1 / sqrt(fan in): sharp attention, and biases that count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / fan_in**0.5)
    return model
