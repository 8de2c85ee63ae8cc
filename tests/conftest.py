"""What every test shares: no network, one thread, and a tiny model."""

import os


# Before anything imports huggingface_hub, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tiny_models import tiny_config as build_config
from tiny_models import tiny_model as build_model


torch.set_num_threads(1)  # test processes share the cores already, and sums keep one order


@pytest.fixture
def tiny_config():
    """RGB, height and SAR (3 + 1 + 2 channels), 5 classes, PVT-v2 of four blocks."""
    return build_config()


@pytest.fixture
def tiny_model():
    """A model of `tiny_config`, in evaluation mode."""
    return build_model()


def pytest_configure(config):
    """Declare the marks that transformers' own common tests carry."""
    names = "accelerate_tests flash_attn_test flash_attn_3_test flash_attn_4_test torch_compile_test"
    for name in names.split():
        config.addinivalue_line("markers", f"{name}: a mark of transformers' common tests")
