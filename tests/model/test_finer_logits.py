"""Logits finer than one for every four pixels a side: `config.logits_stride` of 2 or 1."""

import pytest
import torch
from reference_sgma import reference_forward
from tiny_models import spread_weights, tiny_config, tiny_model
from tiny_trainers import make_config, make_trainer

from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor, modality_agreement
from sgma_hf.model.cells_sgma import pixel_logits, upsample_to_pixels
from sgma_hf.prediction.export import PixelOutputs
from sgma_hf.prediction.sliding_window import sliding_window_logits


TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}  # sums of float64 in another order


@pytest.mark.parametrize("size", [(41, 66), (32, 64)])
@pytest.mark.parametrize("stride", [1, 2])
def test_finer_logits_and_their_losses_agree_with_the_reference(stride, size):
    model = spread_weights(tiny_model(logits_stride=stride).double(), seed=1).train()
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 6, *size, generator=generator).double()
    mask = torch.rand(2, 3, *size, generator=generator) < 0.7
    labels, noise = torch.randint(5, (2, *size), generator=generator), torch.tensor([0.2, 0.7])
    expected = reference_forward(model, pixel_values, mask, labels, noise)
    output = model(pixel_values, mask, labels=labels, sampling_noise=noise)
    assert output.logits.shape == (2, 5, -(-size[0] // stride), -(-size[1] // stride)) == output.sampled_logits.shape
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)


@torch.no_grad()
def test_a_trained_model_starts_with_finer_logits_as_it_was(tmp_path):
    coarse = spread_weights(tiny_model())
    coarse.save_pretrained(tmp_path)
    fine = SgmaForSemanticSegmentation.from_pretrained(tmp_path, logits_stride=1).eval()
    added = set(fine.state_dict()) - set(coarse.state_dict())
    assert added == {"decode_head.part_classifier.weight"} and not fine.state_dict()[added.pop()].any()
    pixel_values = torch.randn(1, 6, 50, 70)
    expected = pixel_logits(coarse(pixel_values).logits, (50, 70))
    torch.testing.assert_close(fine(pixel_values).logits, expected, rtol=1e-4, atol=1e-4)
    assert tiny_model(logits_stride=4).num_parameters() == tiny_model().num_parameters()


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_maps_are_made_of_finer_logits(stride):
    model = spread_weights(tiny_model(logits_stride=stride))
    pixel_values = torch.randn(1, 6, 64, 96)
    output = model(pixel_values)
    pixels = upsample_to_pixels(output.logits, stride, (64, 96))
    processor = SgmaImageProcessor(model.config.modalities, model.config.modality_channels)
    (labels,) = processor.post_process_semantic_segmentation(output)
    assert torch.equal(labels, pixels[0].argmax(0))
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(PixelOutputs(model)(pixel_values, mask), pixels)
    windows = sliding_window_logits(model, pixel_values, mask, tile_size=96)
    torch.testing.assert_close(windows, pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_agreement_is_of_cells_of_four_pixels(stride):
    model = spread_weights(tiny_model(logits_stride=stride))
    encoding = model.encode(torch.randn(1, 6, 30, 50))
    agreement = modality_agreement(model, encoding)
    assert agreement.shape == (1, 3, 8, 13)
    own, rest = (
        pixel_logits(model.fuse_and_decode(encoding, names).logits, (30, 50)).log_softmax(1)
        for names in (["rgb"], ["dsm", "sar"])
    )
    if stride == 1:
        overlap = (0.5 * (own + rest)).exp().sum(1)
        expected = torch.nn.functional.avg_pool2d(overlap, 4, ceil_mode=True)
        torch.testing.assert_close(agreement[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_trainer_trains_finer_logits(tmp_path):
    model = SgmaForSemanticSegmentation(make_config(logits_stride=1))
    trainer = make_trainer(tmp_path, model=model, max_steps=2)
    trainer.train()
    assert trainer.model.decode_head.part_classifier.weight.any()


@pytest.mark.parametrize("stride", [0, 3, 8])
def test_other_strides_are_refused(stride):
    with pytest.raises(ValueError, match=f"`logits_stride` is {stride}; expected 4, 2 or 1 pixels."):
        tiny_config(logits_stride=stride)
