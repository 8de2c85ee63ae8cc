"""The host never waits for the device: on the device "meta" whatever would ask for a value raises."""

import pytest
import torch
from tiny_models import tiny_config, tiny_model

from sgma_hf import SgmaForSemanticSegmentation
from sgma_hf.model.inputs_sgma import host_mask_of
from sgma_hf.training.statistics import TrainingStatistics


def masks():
    pairs = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    pixels = pairs[..., None, None].repeat(1, 1, 64, 64)
    pixels[0, 0, :20] = False
    empty = pixels.clone()
    empty[2] = False
    alone = torch.tensor([[True, False, False]] * 3)
    without_one = torch.tensor([[True, False, True]] * 3)
    return {
        "none": None,
        "pairs": pairs,
        "pixels": pixels,
        "an empty row": empty,
        "all empty": torch.zeros_like(pixels),
        "one alone": alone,
        "one absent": without_one,
    }


def batch(mask, size=64):
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(3, 6, size, size, generator=generator)}
    if mask is not None:
        inputs |= {"modality_mask": mask, "host_mask": host_mask_of(mask)}
    return inputs


def on_meta(inputs):
    return {name: part.to("meta") if torch.is_tensor(part) else part for name, part in inputs.items()}


@pytest.mark.parametrize("mask", masks().values(), ids=masks())
@pytest.mark.parametrize("fusion", ["sgf", "mean"])
def test_inference_asks_the_device_for_nothing(fusion, mask):
    with torch.device("meta"):
        model = SgmaForSemanticSegmentation(tiny_config(fusion=fusion)).eval()
    inputs = batch(mask) if mask is None or mask.ndim == 4 else batch(mask, size=50)
    outputs = model(**on_meta(inputs), output_prototypes=True)
    expected = tiny_model(fusion=fusion)(**inputs, output_prototypes=True)
    assert {name: _shapes(value) for name, value in outputs.items()} == {
        name: _shapes(value) for name, value in expected.items()
    }
    encoding = model.encode(**on_meta(inputs))
    for subset in ([True, False, False], [True, False, True], [True, True, True]):
        model.fuse_and_decode(encoding, torch.tensor(subset))


def _shapes(value):
    return [part.shape for part in value] if isinstance(value, tuple) else value.shape


@pytest.mark.parametrize("mask", masks().values(), ids=masks())
@pytest.mark.parametrize("fusion", ["sgf", "mean"])
def test_a_training_step_and_its_statistics_ask_the_device_for_nothing(fusion, mask):
    config = tiny_config(
        fusion=fusion, class_weights=[1.0, 2.0, 1.0, 1.0, 1.0], subset_loss_weight=1.0, filter_loss_weight=1.0
    )
    with torch.device("meta"):
        model = SgmaForSemanticSegmentation(config).train()
    labels, noise = torch.zeros(3, 64, 64, dtype=torch.int64), torch.rand(3)
    inputs = on_meta(batch(mask) | {"labels": labels, "sampling_noise": noise})
    inputs |= {"host_mask": inputs.get("host_mask", [[1.0] * 3] * 3), "num_items_in_batch": noise.to("meta").sum()}
    outputs = model(**inputs, output_prototypes=True)
    outputs.loss.backward()
    # What asks a tensor of "meta" for its values raises; so nothing did up to here.
    assert outputs.loss.device.type == "meta" and any(part.grad is not None for part in model.parameters())
    channels = model.sgma.channels if fusion == "sgf" else ()
    statistics = TrainingStatistics(9, config, torch.device("meta"), stage_channels=channels)
    mask = inputs.get("modality_mask", torch.ones(3, 3, dtype=torch.bool, device="meta"))
    statistics.add(outputs, mask, inputs["labels"], torch.arange(3, device="meta"))
    statistics.add_gradients([list(model.parameters())])


@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_what_the_host_knows_changes_nothing(mask):
    inputs, model = batch(mask), tiny_model().train()
    more = {"labels": torch.arange(3 * 64 * 64).view(3, 64, 64) % 5, "sampling_noise": torch.rand(3)}
    told = model(**inputs, **more)
    inputs.pop("host_mask", None)
    asked = model(**inputs, **more)
    torch.testing.assert_close(told.loss, asked.loss, rtol=0, atol=0)
    torch.testing.assert_close(told.logits, asked.logits, rtol=0, atol=0)


@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_a_direct_caller_makes_the_host_wait_once(mask, monkeypatch):
    asked = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "numpy", "cpu"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda *args, _method=method, **kwargs: asked.append(_method) or _method(*args, **kwargs),
        )
    inputs, model = batch(mask), tiny_model().train()
    inputs.pop("host_mask", None)
    asked.clear()
    model(**inputs, labels=torch.zeros(3, 64, 64, dtype=torch.int64), sampling_noise=torch.rand(3)).loss.backward()
    assert len(asked) <= 1


@pytest.mark.parametrize("host_mask", [[[1.0, 1.0, 1.0]], [[1.0, 0.5, 1.0]], [[1.0, 0.0]], [[1.0, 0.0, 1.0]] * 2])
def test_a_host_mask_of_another_mask_is_refused(host_mask):
    with pytest.raises(
        ValueError, match=r"`host_mask` is .*; expected \[\[1.0, 0.0, 1.0\]\] as `modality_mask` has it"
    ):
        tiny_model()(torch.zeros(1, 6, 32, 32), torch.tensor([[True, False, True]]), host_mask=host_mask)


@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_a_mask_on_the_cpu_is_read_there(mask):
    with torch.device("meta"):
        model = SgmaForSemanticSegmentation(tiny_config()).eval()
    outputs = model(torch.empty(3, 6, 64, 64, device="meta"), mask)
    assert outputs.logits.shape == (3, 5, 16, 16) and outputs.logits.device.type == "meta"
