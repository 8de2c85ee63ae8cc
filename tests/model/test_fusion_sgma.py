import pytest
import torch
from tiny_models import tiny_model

from sgma_hf.cost.timing import CountedOperators
from sgma_hf.model.fusion_sgma import FUSIONS
from sgma_hf.model.layers_sgma import CONVOLUTION_PRODUCTS, SgmaDepthwiseConvolution, SgmaLinear


def test_every_registered_fusion_is_built_by_its_name():
    assert {"sgf", "mean", "pointwise_mean", "projector_mean"} <= set(FUSIONS)
    for name, fusion in FUSIONS.items():
        model = tiny_model(fusion=name)
        assert {type(stage) for stage in model.sgma.fusion_stages} == {fusion}
        assert (model(torch.zeros(1, 6, 32, 32)).robustness is not None) == fusion.has_robustness


@pytest.mark.parametrize("size", [(2, 3), (5, 5), (9, 12)])
def test_gradients_of_the_depthwise_convolution_are_those_of_torch(size):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 1, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = SgmaDepthwiseConvolution.apply(features, kernel)
    torchs = torch.nn.functional.conv2d(features, kernel, padding=2, groups=3)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=0)
    gradient = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(torchs, (features, kernel), gradient)
    torch.testing.assert_close(torch.autograd.grad(ours, (features, kernel), gradient), expected)
    assert torch.autograd.gradgradcheck(SgmaDepthwiseConvolution.apply, (features[:1, :, :2], kernel))


@pytest.mark.parametrize("shape", [(2, 512, 512), (16384, 64), (16385, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_large_linear_maps_are_linear_maps(shape, bias):
    torch.manual_seed(0)
    tokens = torch.randn(shape, requires_grad=True)
    layer = SgmaLinear(shape[-1], 128, bias=bias)
    assert tokens.numel() * 128 > CONVOLUTION_PRODUCTS
    gradient = torch.randn(*shape[:-1], 128)
    layer(tokens).backward(gradient)
    exact = tokens.detach().double().requires_grad_(), *(part.detach().double() for part in layer.parameters())
    exact = [part.requires_grad_() for part in exact]
    expected = torch.nn.functional.linear(*exact)
    torch.testing.assert_close(layer(tokens), expected.float(), rtol=1e-4, atol=1e-4)
    expected.backward(gradient.double())
    for part, reference in zip([tokens, *layer.parameters()], exact, strict=True):
        # sums over thousands of rows, in another order
        torch.testing.assert_close(part.grad, reference.grad.float(), rtol=1e-4, atol=1e-3)


def test_large_linear_maps_leave_weights_of_another_kind_to_torch():
    class Quantised(torch.Tensor):
        """Can be multiplied, no more, as torchao's weights."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            assert function not in (torch.conv2d, torch.Tensor.view)
            return super().__torch_function__(function, types, args, kwargs)

    layer, tokens = SgmaLinear(512, 128), torch.randn(1024, 512)
    expected = layer(tokens)
    layer.register_parameter("weight", torch.nn.Parameter(layer.weight.detach().as_subclass(Quantised)))
    torch.testing.assert_close(torch.Tensor(layer(tokens)), expected, rtol=1e-4, atol=1e-4)


def test_projectors_train_under_autocast_and_with_a_frozen_encoder():
    model = tiny_model().train()
    pixel_values, labels = torch.zeros(1, 6, 32, 32).uniform_(-1, 1), torch.zeros(1, 32, 32, dtype=torch.int64)
    inputs = {"pixel_values": pixel_values, "labels": labels, "sampling_noise": torch.zeros(1)}
    weight = model.sgma.fusion_stages[0].projectors[0].depthwise[0].weight
    model(**inputs).loss.backward()
    exact, weight.grad = weight.grad, None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    assert weight.grad.dtype == torch.float32
    # bfloat16 holds 8 bits; errors of the whole network add up to a few per cent of the gradient's length
    assert (weight.grad - exact).norm() < 0.2 * exact.norm()
    model.sgma.backbone.requires_grad_(False)
    weight.grad = None
    model(**inputs).loss.backward()
    torch.testing.assert_close(weight.grad, exact)


def test_semantic_guided_fusion_takes_few_operators():
    counts = {}
    for fusion in ("sgf", "mean"):
        model = tiny_model(fusion=fusion)
        with torch.no_grad(), CountedOperators() as operators:
            model(torch.zeros(2, 6, 64, 64))
        counts[fusion] = operators.count
    assert counts["sgf"] - counts["mean"] <= 421  # two thirds of what the first version took
