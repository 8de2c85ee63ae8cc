"""transformers' own common tests of image processors, run on SgmaImageProcessor."""

import contextlib
import re
import unittest

import numpy as np
import pytest
import torch
from PIL import Image
from transformers_sdist import load_common_tests, missing_reason

from sgma_hf import SgmaImageProcessor


if missing_reason():
    pytest.skip(missing_reason(), allow_module_level=True)

ImageProcessingTestMixin = load_common_tests("test_image_processing_common").ImageProcessingTestMixin

ONE_BACKEND = "there is one backend, numpy"
NO_RGB_CONVERSION = "bands are measurements; nothing is converted to RGB"
SKIPPED_TESTS = {
    "test_backends_equivalence": ONE_BACKEND,
    "test_backends_equivalence_batched": ONE_BACKEND,
    "test_save_load_backends": ONE_BACKEND,
    "test_save_load_backends_auto": ONE_BACKEND,
    "test_can_compile_torchvision_backend": "torchvision is not used",
    "test_new_models_require_torchvision_backend": "torchvision is not used",
    "test_fast_image_processor_explicit_none_preserved": "torchvision is not used",
    "test_image_processor_from_dict_with_kwargs_has_attributes": NO_RGB_CONVERSION,
    "test_convert_to_rgb_mixed_input_batch": NO_RGB_CONVERSION,
    "test_call_numpy_4_channels": "the number of bands is the modality's, not that of the call",
    "test_cast_dtype_device": "for processors that share a batch with text",
    "test_image_processor_preprocess_arguments": "arguments are those of the signature; any other is a TypeError",
    "test_post_process_test_mixin_inheritance": "our outputs carry coverage, and maps come without scores per class",
}


class SgmaImageProcessingTester:
    """What the mixin asks for: rows of two modalities, resized to one size."""

    batch_size = 3

    def __init__(self, parent):
        self.parent = parent
        self.image_processing_classes = {"pil": SgmaImageProcessor}

    def prepare_image_processor_dict(self):
        return {
            "modalities": ["rgb", "dsm"],
            "modality_channels": [3, 1],
            "rescale_factor": [1 / 255, 1.0],
            "image_mean": [[0.5, 0.4, 0.3], [12.0]],
            "image_std": [[0.2, 0.2, 0.25], [6.0]],
            "nodata": [[], [-9999.0]],
            "reference_level": ["none", "minimum"],
            "do_resize": True,
            "size": {"height": 20, "width": 24},
        }

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        generator = np.random.default_rng(0)
        rows = []
        for index in range(self.batch_size):
            size = (40, 48) if equal_resolution else (20 * (index + 1), 24 * (index + 1))
            rgb = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            dsm = generator.uniform(30, 60, size).astype(np.float32)
            if torchify:
                rgb, dsm = torch.from_numpy(rgb.transpose(2, 0, 1).copy()), torch.from_numpy(dsm)
            elif not numpify:
                rgb, dsm = Image.fromarray(rgb), Image.fromarray(dsm)
            rows.append({"rgb": rgb, "dsm": dsm})
        return rows

    def prepare_processor_inputs(self, **kwargs):
        return {"images": self.prepare_image_inputs(**kwargs)}


class SgmaImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = SgmaImageProcessingTester

    def skipTest(self, reason):
        self.fail(f"{self._testMethodName} skips itself ({reason}); name it in SKIPPED_TESTS if it does not apply.")

    def subTest(self, *args, **kwargs):
        return contextlib.nullcontext()

    def check_call(self, **kind):
        # The mixin's own three expect images, not rows of images by modality.
        processor = SgmaImageProcessor(**self.image_processor_dict)
        rows = self.image_processor_tester.prepare_image_inputs(**kind)
        together = processor(rows, return_tensors="pt").pixel_values
        assert together.shape == (3, 4, 20, 24) and together.dtype == torch.float32
        for index, row in enumerate(rows):
            assert torch.equal(processor(row, return_tensors="pt").pixel_values[0], together[index])
        expected = processor(self.image_processor_tester.prepare_image_inputs(numpify=True)).pixel_values
        assert torch.equal(together, expected)

    def test_call_pil(self):
        self.check_call()

    def test_call_numpy(self):
        self.check_call(numpify=True)

    def test_call_pytorch(self):
        self.check_call(torchify=True)


def _skip_what_does_not_apply():
    for name, reason in SKIPPED_TESTS.items():
        variants = [test for test in dir(ImageProcessingTestMixin) if re.fullmatch(rf"{name}(_\d+(_.*)?)?", test)]
        if not variants:
            raise ValueError(f"SKIPPED_TESTS names {name}, which ImageProcessingTestMixin does not have.")
        for variant in variants:
            setattr(SgmaImageProcessingTest, variant, unittest.skip(reason)(getattr(SgmaImageProcessingTest, variant)))


_skip_what_does_not_apply()
