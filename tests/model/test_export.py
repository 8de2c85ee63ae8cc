"""torch.compile and torch.export: one graph, whatever is missing."""

import itertools

import pytest
import torch
from tiny_models import CONVNEXT, spread_weights, tiny_model
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.export import Dim

from sgma_hf.model.inputs_sgma import host_mask_of


pytestmark = pytest.mark.long


# The graph computes what eager mode leaves out, in other batches, so that sums differ by rounding. In float64, with
# weights that make attention sharp; a mask baked into the graph is off by 1e-2 or more.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9, "check_dtype": False}


def all_row_masks(batch_size):
    rows = [mask for mask in itertools.product([True, False], repeat=3) if any(mask)]
    return [torch.tensor(masks) for masks in itertools.product(rows, repeat=batch_size)]


def random_pixel_mask(batch_size, size, generator):
    mask = torch.rand(batch_size, 3, 1, 1, generator=generator) < 0.7
    mask = mask & (torch.rand(batch_size, 3, *size, generator=generator) < 0.9)
    mask[:, :, size[0] // 2 :, : size[1] // 3] = False
    return mask


def assert_same(output, expected):
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    assert torch.equal(output.coverage, expected.coverage)
    for maps, right in zip(output.robustness, expected.robustness, strict=True):
        torch.testing.assert_close(maps, right, **TOLERANCE)


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_one_compiled_graph_serves_all_masks():
    model = spread_weights(tiny_model().double())
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 6, 40, 56, generator=generator).double()
    for mask in all_row_masks(2)[::5]:
        assert_same(compiled(pixel_values, mask), model(pixel_values, mask))
    assert counter.frame_count == 1
    for _ in range(4):
        mask = random_pixel_mask(2, (40, 56), generator)
        assert_same(compiled(pixel_values, mask), model(pixel_values, mask))
    assert counter.frame_count == 2  # one more for the other rank of the mask


def test_one_compiled_graph_trains_with_all_masks():
    model = spread_weights(tiny_model().double()).train()
    counter = CompileCounterWithBackend("aot_eager")  # traces the backward pass as well
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 6, 64, 64, generator=generator).double()
    labels = torch.randint(5, (2, 64, 64), generator=generator)
    for mask in all_row_masks(2)[::12]:
        noise = torch.rand(2, generator=generator)
        losses, gradients = [], []
        for run in (model, compiled):
            model.zero_grad()
            output = run(pixel_values, mask, labels=labels, sampling_noise=noise)
            output.loss.backward()
            losses.append(output.loss.detach())
            # what eager mode does not compute has no gradient there, and a gradient of 0 here
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])
        torch.testing.assert_close(losses[0], losses[1], **TOLERANCE)
        for eager, graph in zip(*gradients, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-8)
    assert counter.frame_count == 1


@pytest.mark.parametrize("training", [True, False])
def test_other_sizes_compile_once_more(training):
    model = spread_weights(tiny_model().double()).train(training)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for batch_size, size in ((2, (64, 64)), (3, (96, 128)), (5, (50, 41)), (2, (128, 64)), (4, (33, 96))):
        mask = random_pixel_mask(batch_size, size, generator)
        inputs = {
            "pixel_values": torch.randn(batch_size, 6, *size, generator=generator).double(),
            "modality_mask": mask,
            "host_mask": host_mask_of(mask),  # what the collator hands over is no part of the graph
        }
        if training:
            inputs["labels"] = torch.randint(5, (batch_size, *size), generator=generator)
            inputs["sampling_noise"] = torch.rand(batch_size, generator=generator)
        with torch.set_grad_enabled(training):
            output, expected = compiled(**inputs), model(**inputs)
        assert_same(output, expected)
        if training:
            torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)
    assert counter.frame_count == 2  # for one size, and for any


@pytest.fixture(scope="module")
def exported():
    """A model and its export with dynamic batch, height and width, traced where 32 divides neither side."""
    model = spread_weights(tiny_model().double())
    batch, height, width = Dim("batch", min=1, max=64), Dim("height", min=33, max=4096), Dim("width", min=33, max=4096)
    inputs = {"pixel_values": torch.randn(2, 6, 72, 101).double(), "modality_mask": torch.ones(2, 3, dtype=torch.bool)}
    shapes = {"pixel_values": {0: batch, 2: height, 3: width}, "modality_mask": {0: batch}}
    with torch.no_grad():
        return model, torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (33, 65), (128, 96), (101, 67), (50, 200)])
@torch.no_grad()
def test_an_exported_model_takes_any_batch_size_and_mask(exported, size, batch_size):
    model, program = exported
    generator = torch.Generator().manual_seed(batch_size)
    pixel_values = torch.randn(batch_size, 6, *size, generator=generator).double()
    for mask in torch.tensor([[True, True, True], [False, True, False], [True, False, True]]):
        mask = mask.repeat(batch_size, 1)
        mask[0] = mask[0].roll(1)  # rows differ
        absent = ~mask.repeat_interleave(torch.tensor([3, 1, 2]), dim=1)[..., None, None]
        content = pixel_values.masked_fill(absent, float("nan"))
        assert_same(program(pixel_values=content, modality_mask=mask), model(pixel_values, mask))


@torch.no_grad()
def test_a_mask_of_pixels_exports_too():
    model = spread_weights(tiny_model(backbone_config=CONVNEXT).double())
    generator = torch.Generator().manual_seed(0)
    shapes = {"pixel_values": {0: Dim.DYNAMIC}, "modality_mask": {0: Dim.DYNAMIC}}
    inputs = {
        "pixel_values": torch.randn(2, 6, 40, 56, generator=generator).double(),
        "modality_mask": random_pixel_mask(2, (40, 56), generator),
    }
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    for batch_size in (2, 5):
        pixel_values = torch.randn(batch_size, 6, 40, 56, generator=generator).double()
        mask = random_pixel_mask(batch_size, (40, 56), generator)
        assert_same(program(pixel_values=pixel_values, modality_mask=mask), model(pixel_values, mask))
