"""Early fusion, against the plain way to do it."""

import pytest
import torch
from tiny_models import PVT_V2, spread_weights

from sgma_hf import SgmaConfig
from sgma_hf.comparison.early_fusion import EarlyFusionForSemanticSegmentation, early_fusion_config


CHANNELS = {"rgb": 3, "dsm": 1, "sar": 2}


def new_early_model(**changes):
    torch.manual_seed(0)
    config = early_fusion_config(
        modalities=list(CHANNELS),
        modality_channels=list(CHANNELS.values()),
        num_labels=5,
        backbone_config=PVT_V2,
        fusion="mean",
        mas_loss_weight=0,
        decoder_hidden_size=16,
        **changes,
    )
    return EarlyFusionForSemanticSegmentation(config)


def early_model(**changes):
    return spread_weights(new_early_model(**changes)).eval()


def plain(model, images):
    """Logits of what enters the encoder: a batch whose gaps are zeros already, its sides multiples of 32."""
    return model.decode_head(model.sgma.backbone(images).feature_maps)


@torch.no_grad()
@pytest.mark.parametrize("adapter_size", [0, 4])
def test_missing_modalities_and_gaps_are_zeros_before_the_encoder(adapter_size):
    model = early_model(modality_adapter_size=adapter_size)
    images = torch.randn(2, 6, 32, 64)
    mask = torch.ones(2, 3, 32, 64, dtype=torch.bool)
    mask[0, 1] = False  # row 0 has no height
    mask[1, 2, :, 40:] = False  # the radar of row 1 ends inside
    stems = zip(model.sgma.stems, images.split(list(CHANNELS.values()), 1), strict=True)
    zeros = torch.cat([stem(bands) for stem, bands in stems], 1)
    assert torch.equal(zeros, images) == (adapter_size == 0)
    zeros[0, 3] = 0
    zeros[1, 4:, :, 40:] = 0
    images[0, 3] = torch.nan  # what stands in a gap does not matter
    output = model(images, mask)
    torch.testing.assert_close(output.logits, plain(model, zeros))
    assert output.robustness is None
    assert output.coverage.all()


@torch.no_grad()
def test_every_subset_is_a_full_pass_with_the_others_zeroed():
    model = early_model(modality_adapter_size=0)
    images = torch.randn(2, 6, 32, 32)
    encoding = model.encode(images, torch.tensor([[True, True, True], [True, False, True]]))
    zeros = images.clone()
    zeros[:, :3] = 0
    zeros[1, 3] = 0
    output = model.fuse_and_decode(encoding, torch.tensor([False, True, True]))
    torch.testing.assert_close(output.logits, plain(model, zeros))
    nothing_in_row_one = model.fuse_and_decode(encoding, torch.tensor([False, True, False]))
    assert nothing_in_row_one.coverage[0].all() and not nothing_in_row_one.coverage[1].any()
    alone = model(images, torch.tensor([[False, True, True], [False, False, True]]))
    torch.testing.assert_close(alone.logits, output.logits)


@torch.no_grad()
def test_sides_that_32_does_not_divide_are_padded_as_gaps_are():
    model = early_model(modality_adapter_size=0)
    images = torch.randn(1, 6, 33, 50)
    padded = torch.full((1, 6, 64, 64), model.config.gap_value)
    padded[..., :33, :50] = images
    torch.testing.assert_close(model(images).logits, plain(model, padded)[..., :9, :13])


def test_where_nothing_covers_the_gradient_of_a_new_model_is_no_larger():
    model = new_early_model().train()
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(2, 6, 64, 64, generator=generator), torch.randint(5, (2, 64, 64), generator=generator)
    edge = torch.ones(2, 3, 64, 64, dtype=torch.bool)
    edge[..., 48:] = False

    def gradient_norm(*inputs, labels):
        model.zero_grad()
        model(*inputs, labels=labels).loss.backward()
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    without = gradient_norm(images, labels=labels)
    assert gradient_norm(images, edge, labels=labels) < 3 * without
    assert gradient_norm(images[..., :50, :40], labels=labels[:, :50, :40]) < 3 * without


def test_all_bands_learn_and_no_weight_is_left_over():
    model = early_model().train()
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    labels[:, :, 16:] = 1
    output = model(torch.randn(2, 6, 32, 32), torch.tensor([[True, True, True], [True, True, False]]), labels=labels)
    output.loss.backward()
    assert set(output.loss_dict) == {"loss_sgf"}
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    first = next(weight for weight in model.sgma.backbone.parameters() if weight.ndim == 4)
    assert first.shape[1] == 6 and (first.grad.flatten(2).abs().sum((0, 2)) > 0).all()


def test_configuration_of_another_model_is_refused():
    config = SgmaConfig(backbone_config=PVT_V2, num_attention_heads=2)
    with pytest.raises(ValueError, match="early_fusion_config"):
        EarlyFusionForSemanticSegmentation(config)
