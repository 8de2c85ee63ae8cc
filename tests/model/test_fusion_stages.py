"""SGF and MAS between encoders and decoders of somebody else."""

import math
from types import SimpleNamespace

import pytest
import torch
from reference_sgma import fuse_stage
from torch import nn
from transformers import AutoBackbone, ConvNextConfig, ResNetConfig

from sgma_hf import SemanticGuidedFusion, SgmaModel, modality_aware_sampling
from sgma_hf.cost.timing import CountedOperators
from sgma_hf.model.losses_sgma import sample_modality


CHANNELS, SIZES, MODALITIES = [8, 12, 16], [(9, 7), (4, 6), (2, 3)], ["rgb", "dsm", "sar"]


def make(spread=True, **options):
    torch.manual_seed(0)
    module = SemanticGuidedFusion(CHANNELS, MODALITIES, num_classes=5, **options).double()
    if spread:  # a new one is a mean in part, which would hide mistakes
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return module


def make_features(seed=0, batch_size=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: [
            torch.randn(batch_size, channels, *size, generator=generator, dtype=torch.float64)
            for channels, size in zip(CHANNELS, SIZES, strict=True)
        ]
        for name in MODALITIES
    }


def plain_fusion(module, features, shares, row):
    """Every stage of one row, written down plainly; `shares` are the covered fractions of each stage, (M, h, w)."""
    config = SimpleNamespace(fusion="sgf", num_attention_heads=4)
    weights = {f"sgma.fusion_stages.{name}": value for name, value in module.state_dict().items()}
    stages = []
    for level, size in enumerate(SIZES):
        tokens, covered = {}, {}
        for index, name in enumerate(MODALITIES):
            if shares[level][index].any():
                maps = features[name][level][row : row + 1]
                prefix = f"{level}.projectors.{index}"
                summed = sum(
                    nn.functional.conv2d(
                        maps,
                        module.state_dict()[f"{prefix}.depthwise.{branch}.weight"],
                        padding=kernel // 2,
                        groups=maps.shape[1],
                    )
                    for branch, kernel in enumerate((11, 7, 3))
                )
                tokens[index] = summed[0].flatten(1).t() @ module.state_dict()[f"{prefix}.pointwise.weight"].t()
                covered[index] = shares[level][index].flatten()
        fused, robustness, prototypes = fuse_stage(config, weights, level, tokens, covered)
        nowhere = torch.zeros(math.prod(size), dtype=torch.float64)
        robustness = torch.stack([robustness.get(index, nowhere) for index in range(len(MODALITIES))])
        stages.append((fused.t().unflatten(1, size), robustness.unflatten(1, size), prototypes))
    return stages


def cell_shares(mask, size):
    """Covered share of each cell, pixel by pixel; cells divide the image evenly, and may share pixels at borders."""
    height, width = mask.shape
    shares = torch.empty(size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * height // size[0], -(-(i + 1) * height // size[0]))
            columns = slice(j * width // size[1], -(-(j + 1) * width // size[1]))
            shares[i, j] = mask[rows, columns].double().mean()
    return shares


@pytest.mark.parametrize("kind", ["rows", "pixels"])
def test_it_computes_what_the_paper_says(kind):
    module, features = make(), make_features()
    if kind == "rows":
        mask = torch.tensor([[True, False, True], [True, True, True]])
        shares = [mask[:, :, None, None].double().expand(-1, -1, *size) for size in SIZES]
    else:
        mask = torch.ones(2, 3, 36, 31, dtype=torch.bool)  # no multiple of the maps' sides
        mask[0, 0, :, 11:], mask[0, 1], mask[1, :, :5, :9], mask[1, 2, 20:] = False, False, False, False
        shares = [torch.stack([torch.stack([cell_shares(m, size) for m in row]) for row in mask]) for size in SIZES]
    output = module(features, mask, output_prototypes=True)
    for row in range(2):
        plain = plain_fusion(module, features, [share[row] for share in shares], row)
        for level, (fused, robustness, prototypes) in enumerate(plain):
            torch.testing.assert_close(output.feature_maps[level][row], fused)
            torch.testing.assert_close(output.robustness[level][row], robustness)
            torch.testing.assert_close(output.prototypes[level][row], prototypes)


def test_a_subset_is_what_its_modalities_alone_give():
    module, features = make(), make_features()
    projected = module.project(features)
    for names in (["rgb"], ["dsm", "sar"], ["sar", "rgb"]):
        alone = module({name: features[name] for name in names})
        as_mask = torch.tensor([name in names for name in MODALITIES])
        for subset in (names, as_mask, as_mask.expand(2, 3)):
            fused = module.fuse(projected, subset)
            for kind in ("feature_maps", "robustness"):
                for one, other in zip(fused[kind], alone[kind], strict=True):
                    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("fusion", "limits"), [("sgf", (350, 430, 450)), ("mean", (60, 100, 130))])
def test_it_takes_few_operators(fusion, limits):
    """Of three stages, without a mask, with one of rows and one of pixels; nothing is done twice for a subset."""
    module, features = make(fusion=fusion), make_features()
    pixels = torch.ones(2, 3, 36, 28, dtype=torch.bool)
    pixels[0, 0, :, 11:] = False
    masks = (None, torch.tensor([[True, False, True], [True, True, True]]), pixels)
    for mask, limit in zip(masks, limits, strict=True):
        with torch.no_grad(), CountedOperators() as operators:
            module(features, mask)
        assert operators.count <= limit
        projected = module.project(features, mask)
        with torch.no_grad(), CountedOperators() as alone:
            module.fuse(projected, ["sar"])
        assert alone.count <= 80


def test_what_is_absent_cannot_matter():
    module, features = make(), make_features()
    mask = torch.tensor([[True, False, False], [True, True, False]])
    expected = module(features, mask)
    features["dsm"] = [torch.where(mask[:, 1, None, None, None], one, torch.nan) for one in features["dsm"]]
    for absent in ([torch.full_like(one, torch.nan) for one in features["sar"]], None):
        features["sar"] = absent
        for given in (features, list(features.values()), {n: m for n, m in features.items() if m is not None}):
            for kind in ("feature_maps", "robustness"):
                for one, other in zip(module(given, mask)[kind], expected[kind], strict=True):
                    assert torch.equal(one, other)


def test_a_mask_of_everything_is_none_and_one_of_nothing_is_0():
    module, features = make(), make_features()
    expected = module(features).feature_maps
    for mask in (torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, 36, 28, dtype=torch.bool)):
        assert all(torch.equal(*pair) for pair in zip(module(features, mask).feature_maps, expected, strict=True))
    nothing = module(features, torch.zeros(2, 3, 36, 28, dtype=torch.bool))
    assert [one.shape for one in nothing.feature_maps] == [one.shape for one in expected]
    assert not any(one.any() for one in (*nothing.feature_maps, *nothing.robustness, nothing.coverage))


@pytest.mark.parametrize("fusion", ["sgf", "mean"])
def test_one_graph_serves_all_masks(fusion):
    module, features = make(fusion=fusion).eval(), make_features()
    masks = torch.tensor([[[True, False, True], [True, True, True]], [[False, True, False], [True, False, True]]])
    exported = torch.export.export(module, (features, masks[0])).module()
    for mask in masks:
        for one, other in zip(exported(features, mask).feature_maps, module(features, mask).feature_maps, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["none", "rows", "pixels"])
def test_a_mask_on_the_cpu_asks_the_device_for_nothing(kind):
    """On the device "meta" whatever would ask for a value raises."""
    mask = None if kind == "none" else torch.tensor([[True, False, True], [True, True, True]])
    if kind == "pixels":
        mask = mask[:, :, None, None].repeat(1, 1, 36, 28)
        mask[1, 0, :9] = False
    module = make().to("meta")
    features = {name: [one.to("meta") for one in maps] for name, maps in make_features().items()}
    projected = module.project(features, mask)
    fused = module.fuse(projected)
    assert [one.shape for one in fused.feature_maps] == [one.shape for one in features["rgb"]]
    module.fuse(projected, ["rgb"])
    modality, _ = modality_aware_sampling(projected, fused.robustness, noise=torch.zeros(2))
    assert module.fuse_single(projected, modality)[0].device.type == "meta"


def test_its_weights_are_set_as_a_models_are():
    module = make(spread=False)
    for block, channels in zip(module, CHANNELS, strict=True):
        for perceptron in (block.spatial_perceptron, block.robustness_perceptron):
            assert torch.equal(perceptron.value.weight, torch.eye(channels, dtype=torch.float64))
            assert torch.equal(perceptron.output.weight, torch.eye(channels, dtype=torch.float64))
            assert perceptron.query.weight.abs().max() <= (3 / channels) ** 0.5  # Xavier's
        for projector in block.projectors:
            assert all(
                0 < branch.weight.abs().max() <= 1 / kernel
                for branch, kernel in zip(projector.depthwise, (11, 7, 3), strict=True)
            )


def test_the_model_is_built_from_it():
    config = {"backbone_config": {"model_type": "pvt_v2"}, "num_labels": 5}
    model = SgmaModel(SgmaModel.config_class(**config))
    assert type(model.fusion_stages) is SemanticGuidedFusion
    alone = SemanticGuidedFusion(model.channels, model.config.modalities, 5)
    alone.load_state_dict(model.fusion_stages.state_dict())
    count = sum(one.numel() for one in SemanticGuidedFusion([64, 128, 320, 512], MODALITIES, 5).parameters())
    assert count == 4_790_272  # with the paper's main encoder


def test_the_draw_is_that_of_the_fragile():
    module, features = make(), make_features()
    mask = torch.ones(2, 3, 36, 28, dtype=torch.bool)
    mask[0, 2], mask[1, 0, :18] = False, False
    projected = module.project(features, mask)
    robustness = module.fuse(projected).robustness
    noise = torch.tensor([0.2, 0.7])
    modality, probabilities = modality_aware_sampling(projected, robustness, noise=noise)
    expected = []
    for row in range(2):
        scores = torch.zeros(3, dtype=torch.float64)
        for maps in robustness:
            sums, counts = torch.zeros(3, dtype=torch.float64), torch.zeros(3)
            for position in maps[row].flatten(1).t():
                there = position > 0
                if there.sum() > 1:
                    sums[there] += 1 / position[there] / (1 / position[there]).sum()
                    counts[there] += 1
            score = sums / counts.clamp_min(1)
            scores += score / score.sum() / len(robustness)
        expected.append(scores / scores.sum())
    torch.testing.assert_close(probabilities.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)  # float32
    assert torch.equal(modality, sample_modality(probabilities, noise))
    single = module.fuse_single(projected, modality)
    alone = module.fuse(projected, torch.arange(3) == modality[:, None]).feature_maps
    assert all(torch.equal(*pair) for pair in zip(single, alone, strict=True))
    assert modality_aware_sampling(projected, None)[1][0].tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": {}}, ValueError, r"has 3 entries, 0 of them with maps"),
        ({"features": [None, None]}, ValueError, r"has 2 entries, 0 of them"),
        ({"features": {"nir": None}}, ValueError, r"`features` has \['nir'\]; expected some of \['rgb'"),
        ({"features": {"rgb": make_features()["rgb"][:2]}}, ValueError, r"'rgb' have shapes .*; expected 3 of"),
        ({"features": {**make_features(), "dsm": make_features(batch_size=3)["dsm"]}}, ValueError, r"'dsm' have"),
        ({"features": {"rgb": make_features()["rgb"][::-1]}}, ValueError, r"'rgb' have"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, ValueError, r"`mask` has shape \(2, 2\); expected \(2, 3\)"),
        ({"mask": torch.ones(2, 3, 9, dtype=torch.bool)}, ValueError, r"or \(2, 3, 'height', 'width'\)"),
        ({"mask": torch.ones(2, 3)}, TypeError, r"`mask` is torch.float32; expected bool"),
        (
            {"mask": torch.tensor([[False] * 3, [True] * 3])},
            ValueError,
            r"`mask` has no modality at all in row.*\[0\]",
        ),
        ({"subset": ["nir"]}, ValueError, r"The subset is \['nir'\]; expected a list of names"),
        ({"subset": "rgb"}, ValueError, r"The subset is 'rgb'; expected a list"),
        ({"subset": torch.tensor([True])}, ValueError, r"The subset has shape \(1,\); expected \(3,\), \(2, 3\) or"),
        ({"subset": torch.tensor([2, 0, 1])}, TypeError, r"The subset is torch.int64; expected bool, True for what"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, error, message):
    with pytest.raises(error, match=message) as refused:
        make()(**{"features": make_features(), **change})
    assert "\n" not in str(refused.value)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match=r"`num_attention_heads` is 4, which does not divide the 6 channels"):
        SemanticGuidedFusion([6], MODALITIES, 5)
    for channels, modalities in (([8], ["rgb", "rgb"]), ([8], "rgb"), (8, ["rgb"]), ([], ["rgb"]), ([8], [])):
        with pytest.raises(ValueError, match=r"expected two lists, the channels of each stage and the names"):
            SemanticGuidedFusion(channels, modalities, 5)
    for channels, classes, heads in (([8, 0], 5, 4), ([8.0], 5, 4), ([8], 0, 4), ([8], 5, 0)):
        with pytest.raises(ValueError, match=r"expected whole numbers of at least 1, not \["):
            SemanticGuidedFusion(channels, MODALITIES, classes, num_attention_heads=heads)
    with pytest.raises(ValueError, match=r"`fusion` is 'sum'; expected one of"):
        SemanticGuidedFusion([8], MODALITIES, 5, fusion="sum")


class PlainDecoder(nn.Module):
    """The stages at the size of the first, side by side, and a classifier."""

    def __init__(self, channels, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(sum(channels), num_classes, 1)

    def forward(self, maps):
        return self.classifier(torch.cat([nn.functional.interpolate(one, maps[0].shape[2:]) for one in maps], dim=1))


def test_it_is_trained_between_two_encoders_and_a_decoder():
    """The page's example with encoders of transformers: two of different families, of equal channels."""
    torch.manual_seed(0)
    channels, stages = [8, 16, 16, 24], {"out_indices": [1, 2, 3, 4]}
    encoders = nn.ModuleDict(
        {
            "rgb": AutoBackbone.from_config(
                ResNetConfig(embedding_size=8, hidden_sizes=channels, depths=[1] * 4, layer_type="basic", **stages)
            ),
            "dsm": AutoBackbone.from_config(
                ConvNextConfig(num_channels=1, hidden_sizes=channels, depths=[1] * 4, **stages)
            ),
        }
    )
    sgf, decoder = SemanticGuidedFusion(channels, list(encoders), num_classes=2), PlainDecoder(channels, 2)
    parts = nn.ModuleList([encoders, sgf, decoder])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=3e-3)
    labels = (torch.arange(64) // 16 % 2).expand(4, 64, 64).contiguous()
    images = {"rgb": labels[:, None].float().repeat(1, 3, 1, 1), "dsm": 1 - labels[:, None].float()}
    mask = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    losses = []
    for step in range(30):
        features = {name: encoder(images[name]).feature_maps for name, encoder in encoders.items()}
        projected = sgf.project(features, mask)
        fused = sgf.fuse(projected)
        drawn, _ = modality_aware_sampling(projected, fused.robustness, noise=torch.full((4,), (step + 0.5) / 30))
        maps = fused.feature_maps, sgf.fuse_single(projected, drawn)
        of_all, of_one = (nn.functional.cross_entropy(decoder(one), labels[:, ::4, ::4]) for one in maps)
        (2 * of_all + of_one).backward()
        assert all(one.grad is not None for one in parts.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append((of_all.item(), of_one.item()))
    assert losses[-1][0] < 0.5 * losses[0][0] and losses[-1][1] < 0.5 * losses[0][1]
