"""Series: several dates of a modality, at dates of their own, with gaps."""

from typing import ClassVar

import pytest
import torch
from reference_sgma import reference_forward
from tiny_models import PVT_V2, RESNET, spread_weights, tiny_config, tiny_model
from torch.export import Dim

from sgma_hf import SemanticGuidedFusion, SgmaForSemanticSegmentation, SgmaFusion
from sgma_hf.cost.timing import CountedOperators
from sgma_hf.model import encoders_sgma
from sgma_hf.model.inputs_sgma import host_mask_of


PERIODS = [365.25, 182.6, 121.75, 91.3, 60.9]
FUSIONS = ["sgf", "mean", "pointwise_mean", "projector_mean"]
BAND_OF = [0, 0, 0, 1, 2, 2]  # modality of each channel
# Sums of float64 in another order; a wrong formula is off by 1e-3 or more.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def series(kind="pixels", batch_size=3, slots=4, size=(40, 64), seed=0):
    """Three rows of several lengths, dates of their own, some not known: pixels, mask and dates, in float64."""
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(batch_size, slots, 6, *size, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch_size, slots, 3, generator=generator) < 0.6
    mask[0] = True
    mask[-1, :, 1:] = False
    mask[-1, 0, 0] = True
    dates = torch.rand(batch_size, slots, 3, generator=generator, dtype=torch.float64) * 365 + 7000
    dates[1, 0] = torch.nan
    if kind == "pixels":
        mask = mask[..., None, None] & (torch.rand(batch_size, slots, 3, *size, generator=generator) < 0.7)
        mask[..., :16] &= torch.rand(batch_size, slots, 3, 1, 1, generator=generator) < 0.5
    return pixel_values, mask, dates


def exact_model(**changes):
    return spread_weights(tiny_model(date_periods=PERIODS, **changes).double(), seed=1)


def by_pixel(mask, size):
    return mask if mask.ndim == 5 else mask[..., None, None].expand(*mask.shape, *size)


def assert_close(output, expected):
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    for name in ("robustness", "date_robustness"):
        for maps, right in zip(getattr(output, name) or (), getattr(expected, name) or (), strict=True):
            torch.testing.assert_close(maps, right, **TOLERANCE)


@pytest.mark.parametrize("kind", ["dates", "pixels"])
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_series_agree_with_the_reference(fusion, kind):
    model = exact_model(fusion=fusion)
    pixel_values, mask, dates = series(kind)
    output = model(pixel_values, mask, dates=dates, output_prototypes=True, output_date_robustness=True)
    expected = reference_forward(model, pixel_values, mask, dates=dates)
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    assert torch.equal(output.coverage, expected.coverage)
    for name in ("robustness", "date_robustness", "prototypes"):
        for maps, right in zip(
            getattr(output, name) or (), getattr(expected, name) if fusion == "sgf" else (), strict=True
        ):
            torch.testing.assert_close(maps, right, **TOLERANCE)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_losses_draws_and_gradients_of_series_agree_with_the_reference(fusion):
    model = exact_model(fusion=fusion).train()
    pixel_values, mask, dates = series(size=(32, 32))
    labels = torch.arange(3 * 32 * 32).view(3, 32, 32) % 6
    labels[labels == 5] = 255
    noise = torch.tensor([0.2, 0.6, 0.9])
    expected = reference_forward(model, pixel_values, mask, labels, noise, dates)
    output = model(pixel_values, mask, labels=labels, sampling_noise=noise, dates=dates)
    torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)
    assert output.sampled_modality.tolist() == expected.sampled
    parameters = dict(model.named_parameters())
    gradients, right = (
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for loss in (output.loss, expected.loss)
    )
    for name, gradient, correct in zip(parameters, gradients, right, strict=True):
        gradient, correct = (torch.zeros(()) if part is None else part for part in (gradient, correct))
        assert (gradient - correct).abs().max() <= 1e-10 * max(1, correct.abs().max()), name
    assert all(gradients[index].any() for index, name in enumerate(parameters) if "date_modulations" in name)


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_one_unknown_date_is_the_static_model_to_the_last_bit(fusion):
    model = spread_weights(tiny_model(date_periods=PERIODS, fusion=fusion), seed=1)
    inputs = []
    for kind in ("dates", "pixels"):
        pixel_values, mask, dates = series(kind)
        mask[:, 0, 0] = True
        unknown = torch.full_like(dates[:, :1].float(), torch.nan)
        inputs.append((pixel_values[:, 0].float(), mask[:, 0], pixel_values[:, :1].float(), mask[:, :1], unknown))
    outputs = []
    for image, mask, one, one_mask, unknown in inputs:
        outputs.append(model(image, mask))
        given = model(one, one_mask, dates=unknown)
        assert torch.equal(given.logits, outputs[-1].logits)
        assert fusion != "sgf" or all(map(torch.equal, given.robustness, outputs[-1].robustness))
    for block in model.sgma.fusion_stages:  # the same weights, without the parts that know dates
        block.date_modulations = None
    model.config.date_periods = None
    for (image, mask, *_), output in zip(inputs, outputs, strict=True):
        assert torch.equal(model(image, mask).logits, output.logits)


def test_a_model_without_dates_has_the_same_weights_as_ever():
    static, dated = tiny_model(), tiny_model(date_periods=PERIODS)
    added = {name for name in dated.state_dict() if name not in static.state_dict()}
    assert added == {
        f"sgma.fusion_stages.{level}.date_modulations.{modality}.{part}"
        for level in range(4)
        for modality in range(3)
        for part in ("hidden.weight", "hidden.bias", "date.weight", "output.weight")
    }
    per_modality = sum(2 * channels**2 + channels + 2 * len(PERIODS) * channels for channels in dated.sgma.channels)
    assert sum(dated.state_dict()[name].numel() for name in added) == 3 * per_modality
    with torch.no_grad():  # what a new model makes of dates is nothing yet
        pixel_values, mask, dates = (part.float() if part.is_floating_point() else part for part in series())
        assert torch.equal(dated(pixel_values, mask, dates=dates).logits, dated(pixel_values, mask).logits)


@pytest.mark.parametrize("kind", ["dates", "pixels"])
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_order_repeats_and_empty_slots_change_nothing(fusion, kind):
    model = exact_model(fusion=fusion)
    pixel_values, mask, dates = series(kind)
    expected = model(pixel_values, mask, dates=dates, output_date_robustness=True)
    order = torch.stack([torch.randperm(4) for _ in range(9)]).view(3, 3, 4).transpose(1, 2)  # of each modality

    def turned(values, places=order):
        places = places.view(*places.shape, *[1] * (values.ndim - 3))
        return values.gather(1, places.expand(values.shape))

    output = model(
        turned(pixel_values, order[..., BAND_OF]), turned(mask), dates=turned(dates), output_date_robustness=True
    )
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    for maps, right in zip(output.date_robustness or (), expected.date_robustness or (), strict=True):
        torch.testing.assert_close(maps, turned(right), **TOLERANCE)

    twice = model(*(torch.cat([part, part], 1) for part in (pixel_values, mask)), dates=torch.cat([dates, dates], 1))
    torch.testing.assert_close(twice.logits, expected.logits, **TOLERANCE)
    for maps, right in zip(twice.robustness or (), expected.robustness or (), strict=True):
        torch.testing.assert_close(maps, right, **TOLERANCE)

    empty = [torch.full_like(pixel_values, torch.nan), torch.zeros_like(mask), torch.full_like(dates, 1e9)]
    padded = [torch.cat(pair, 1) for pair in zip((pixel_values, mask, dates), empty, strict=True)]
    padded = model(padded[0], padded[1], dates=padded[2], output_date_robustness=True)
    assert torch.equal(padded.logits, expected.logits)
    for maps, right in zip(padded.date_robustness or (), expected.date_robustness or (), strict=True):
        assert torch.equal(maps[:, :4], right) and not maps[:, 4:].any()


@pytest.mark.parametrize("kind", ["dates", "pixels"])
@torch.no_grad()
def test_what_stands_under_clouds_and_in_absent_dates_is_irrelevant_to_the_last_bit(kind):
    model = spread_weights(tiny_model(date_periods=PERIODS), seed=1)
    pixel_values, mask, dates = (part.float() if part.is_floating_point() else part for part in series(kind))
    expected = model(pixel_values, mask, dates=dates)
    there = by_pixel(mask, pixel_values.shape[-2:])
    pixel_values[~there[:, :, BAND_OF]] = torch.nan
    dates[~there.flatten(3).any(3)] = torch.inf
    output = model(pixel_values, mask, dates=dates)
    assert torch.equal(output.logits, expected.logits)
    assert all(map(torch.equal, output.robustness, expected.robustness))


@pytest.mark.parametrize("kind", ["dates", "pixels"])
@torch.no_grad()
def test_a_row_does_not_depend_on_those_beside_it(kind):
    model = exact_model()
    pixel_values, mask, dates = series(kind)
    together = model(pixel_values, mask, dates=dates, output_date_robustness=True)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = model(pixel_values[rows], mask[rows], dates=dates[rows], output_date_robustness=True)
        torch.testing.assert_close(alone.logits, together.logits[rows], **TOLERANCE)
        for maps, right in zip(alone.date_robustness, together.date_robustness, strict=True):
            torch.testing.assert_close(maps, right[rows], **TOLERANCE)


@torch.no_grad()
def test_the_dates_of_a_sensor_share_its_place():
    model = exact_model()
    pixel_values, _, _ = series()
    pixel_values = pixel_values[:1, :1].expand(-1, 30, -1, -1, -1)
    mask = torch.zeros(1, 30, 3, dtype=torch.bool)
    mask[:, :, 0] = mask[:, 0, 1] = True  # thirty times the same image beside one of another sensor
    many = model(pixel_values, mask, output_date_robustness=True)
    one = model(pixel_values[:, 0], mask[:, 0])
    torch.testing.assert_close(many.logits, one.logits, **TOLERANCE)
    for maps, right in zip(many.robustness, one.robustness, strict=True):
        torch.testing.assert_close(maps, right, **TOLERANCE)
    torch.testing.assert_close(
        many.date_robustness[0][:, :, 0], (one.robustness[0][:, None, 0] / 30).expand(-1, 30, -1, -1), **TOLERANCE
    )


@pytest.mark.parametrize("kind", ["dates", "pixels"])
@pytest.mark.parametrize("fusion", ["sgf", "mean"])
@torch.no_grad()
def test_an_extended_encoding_is_that_of_all_dates(fusion, kind):
    model = exact_model(fusion=fusion)
    pixel_values, mask, dates = series(kind)
    mask = by_pixel(mask, pixel_values.shape[-2:]).clone()  # a row may have nothing new
    mask[:, 0, 0] = True
    encoding = model.encode(pixel_values[:, 0], mask[:, 0, :, 0, 0], dates=dates[:, 0])
    first = model.fuse_and_decode(encoding).logits
    for slots in (slice(1, 2), slice(2, 4)):
        extended = model.extend(encoding, pixel_values[:, slots], mask[:, slots], dates[:, slots])
        assert torch.equal(model.fuse_and_decode(encoding).logits, first)  # which is left as it was
        encoding, first = extended, model.fuse_and_decode(extended).logits
    mask[:, 0] = mask[:, 0, :, :1, :1]
    expected = model.encode(pixel_values, mask, dates=dates)
    assert torch.equal(encoding.observations, expected.observations)
    assert torch.equal(encoding.present, expected.present)
    assert torch.equal(*(part.coverage(part.observed) for part in (encoding, expected)))
    subsets = [None, ["rgb"], torch.rand(3, 4, 3) < 0.5]
    for subset in subsets:
        assert_close(
            *(model.fuse_and_decode(part, subset, output_date_robustness=True) for part in (encoding, expected))
        )


@torch.no_grad()
def test_an_encoding_of_nothing_is_extended_and_another_size_is_refused():
    model = exact_model()
    pixel_values, mask, dates = series()
    nothing = model.encode(pixel_values[:, :1], torch.zeros_like(mask[:, :1]))
    expected = model(pixel_values, mask, dates=dates).logits
    extended = model.extend(nothing, pixel_values, mask, dates)
    torch.testing.assert_close(model.fuse_and_decode(extended).logits, expected, **TOLERANCE)
    back = model.extend(
        model.encode(pixel_values, mask, dates=dates), pixel_values[:, :1], torch.zeros_like(mask[:, :1])
    )
    torch.testing.assert_close(model.fuse_and_decode(back).logits, expected, **TOLERANCE)
    with pytest.raises(ValueError, match="has 3 rows and an image_size of"):
        model.extend(nothing, pixel_values[..., :32, :])
    with pytest.raises(ValueError, match="has 3 rows"):
        model.extend(nothing, pixel_values[:1])


@pytest.mark.parametrize("kind", ["dates", "pixels"])
@torch.no_grad()
def test_a_subset_of_the_dates_is_as_if_the_others_were_absent(kind):
    model = exact_model()
    pixel_values, mask, dates = series(kind)
    subset = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    subset[:, 0, 0] = mask.view(3, 4, 3, -1)[:, 0, 0].any(-1) | subset[:, 0, 0]
    encoding = model.encode(pixel_values, mask, dates=dates)
    fused = model.fuse_and_decode(encoding, subset, output_date_robustness=True)
    alone = encoding.only(subset)
    assert_close(model.fuse_and_decode(alone, output_date_robustness=True), fused)
    assert torch.equal(alone.observations, encoding.observations & subset)
    left = by_pixel(mask, pixel_values.shape[-2:]) & subset[..., None, None]
    expected = model(pixel_values, left, dates=dates, output_date_robustness=True)
    assert_close(fused, expected)
    assert torch.equal(fused.coverage, expected.coverage)
    by_name, by_mask = (
        model.fuse_and_decode(encoding, part) for part in (["dsm"], torch.tensor([False, True, False]))
    )
    assert torch.equal(by_name.logits, by_mask.logits)


@torch.no_grad()
def test_only_what_is_there_is_encoded():
    model = exact_model()
    pixel_values, mask, dates = series("dates")
    seen = []
    model.sgma.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    encoding = model.encode(pixel_values, mask, dates=dates)
    assert seen == [int(mask.sum())]
    assert torch.equal(encoding.observations, mask) and torch.equal(encoding.present, mask.any(1))


@pytest.mark.parametrize("training", [False, True])
def test_single_images_cost_no_operator_more(training):
    counts = []
    for changes in ({}, {"date_periods": PERIODS}):
        model = tiny_model(**changes).train(training)
        with CountedOperators() as operators:
            model(torch.zeros(1, 6, 32, 32), labels=torch.zeros(1, 32, 32, dtype=torch.int64)).loss.backward()
        counts.append(operators.count)
    assert counts[0] == counts[1]


def test_a_cpu_encodes_many_images_some_at_a_time(monkeypatch):
    monkeypatch.setattr(encoders_sgma, "_PIXELS_AT_ONCE", 3 * 64 * 64)
    model = exact_model(backbone_config={"rgb+dsm": PVT_V2, "sar": RESNET})
    pixel_values, mask, dates = series("dates")
    encoded = []
    for backbone in model.sgma.backbones:
        backbone.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    expected = model(pixel_values, mask, dates=dates).logits
    sensors = [int(mask[..., :2].sum()), int(mask[..., 2].sum())]
    assert encoded == sensors  # what learns keeps all of it anyway
    encoded.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values, mask, dates=dates).logits, expected, **TOLERANCE)
    assert encoded == [min(3, count - start) for count in sensors for start in range(0, count, 3)]


@torch.no_grad()
def test_a_model_without_dates_takes_a_set_of_images_and_refuses_dates():
    model = tiny_model()
    pixel_values, mask, dates = (part.float() if part.is_floating_point() else part for part in series())
    expected = model(pixel_values, mask)
    assert torch.equal(model(pixel_values, mask, dates=torch.full_like(dates, torch.nan)).logits, expected.logits)
    with pytest.raises(ValueError, match="`dates` are given to a model without `date_periods`") as refused:
        model(pixel_values, mask, dates=dates)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality_mask": torch.ones(3, 3, dtype=torch.bool)}, r"shape \(3, 3\); expected \(3, 4, 3\)"),
        ({"modality_mask": torch.ones(3, 2, 3, dtype=torch.bool)}, r"shape \(3, 2, 3\); expected \(3, 4, 3\)"),
        ({"dates": torch.zeros(3, 3)}, r"`dates` is torch.float32 of shape \(3, 3\); expected floats of \(3, 4, 3\)"),
        ({"dates": torch.zeros(3, 4, 3, dtype=torch.int64)}, r"`dates` is torch.int64"),
        ({"pixel_values": torch.zeros(3, 4, 5, 40, 64)}, r"or \(batch_size, dates, 6, height, width\)"),
        ({"modality_mask": torch.zeros(3, 4, 3, dtype=torch.bool)}, r"no modality at all in row\(s\) \[0, 1, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    inputs = {"pixel_values": torch.zeros(3, 4, 6, 40, 64)}
    with pytest.raises(ValueError, match=message) as refused:
        tiny_model(date_periods=PERIODS)(**{**inputs, **change})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("periods", [[], [0.0], [-1.0], [float("inf")], [1.0] * 65])
def test_periods_that_are_none_are_refused(periods):
    with pytest.raises(ValueError, match="`date_periods` is"):
        tiny_config(date_periods=periods)


@torch.no_grad()
def test_series_are_saved_and_loaded(tmp_path):
    model = spread_weights(tiny_model(date_periods=PERIODS), seed=1)
    model.save_pretrained(tmp_path)
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert loaded.config.date_periods == PERIODS
    pixel_values, mask, dates = (part.float() if part.is_floating_point() else part for part in series())
    expected = model(pixel_values, mask, dates=dates).logits
    torch.testing.assert_close(loaded(pixel_values, mask, dates=dates).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_static_checkpoint_starts_a_model_with_dates_as_it_is(tmp_path):
    static = spread_weights(tiny_model(), seed=1)
    static.save_pretrained(tmp_path)
    dated = SgmaForSemanticSegmentation.from_pretrained(tmp_path, date_periods=PERIODS).eval()
    pixel_values, mask, dates = (part.float() if part.is_floating_point() else part for part in series())
    with torch.no_grad():
        expected, output = static(pixel_values, mask), dated(pixel_values, mask, dates=dates)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    model = exact_model().train()
    pixel_values, mask, dates = series(size=(32, 32))
    inputs = {"labels": torch.zeros(3, 32, 32, dtype=torch.int64), "sampling_noise": torch.rand(3), "dates": dates}
    losses, gradients = [], []
    for _ in range(2):
        loss = model(pixel_values, mask, **inputs).loss
        losses.append(loss.detach())
        weights = [part for name, part in model.named_parameters() if "date_modulations" in name]
        gradients.append(torch.autograd.grad(loss, weights))
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(*losses, **TOLERANCE)
    torch.testing.assert_close(*gradients, **TOLERANCE)


def test_what_the_host_knows_of_series_changes_nothing():
    model = tiny_model(date_periods=PERIODS)
    pixel_values, mask, dates = (part.float() if part.is_floating_point() else part for part in series())
    told = model(pixel_values, mask, dates=dates, host_mask=host_mask_of(mask))
    assert torch.equal(told.logits, model(pixel_values, mask, dates=dates).logits)
    with torch.device("meta"):
        model = SgmaForSemanticSegmentation(tiny_config(date_periods=PERIODS)).eval()
    on_meta = model(pixel_values.to("meta"), mask.to("meta"), dates=dates, host_mask=host_mask_of(mask))
    assert on_meta.logits.shape == told.logits.shape


def test_modalities_of_a_model_with_dates_come_and_go():
    model = exact_model()
    pixel_values, mask, dates = series()
    with torch.no_grad():
        expected = model(pixel_values, mask, dates=dates).logits
    model.add_modality("thermal", 1, like="dsm")
    for block in model.sgma.fusion_stages:
        weights = [block.date_modulations[index].hidden.weight for index in (1, 3)]
        assert torch.equal(*weights)
    model.drop_modality("thermal")
    with torch.no_grad():
        assert torch.equal(model(pixel_values, mask, dates=dates).logits, expected)


@pytest.mark.long
@torch.no_grad()
def test_one_exported_graph_serves_series_of_any_length():
    model = exact_model()
    rows, slots = Dim("rows", max=64), Dim("slots", min=2, max=400)
    for kind in ("dates", "pixels"):
        pixel_values, mask, dates = series(kind, size=(64, 64))
        inputs = {"pixel_values": pixel_values, "modality_mask": mask, "dates": dates}
        shapes = {name: {0: rows, 1: slots} for name in inputs}
        graph = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
        pixel_values, mask, dates = series(kind, batch_size=2, slots=7, size=(64, 64), seed=1)
        output = graph(pixel_values=pixel_values, modality_mask=mask, dates=dates)
        assert_close(output, model(pixel_values, mask, dates=dates))


def test_every_fusion_of_ones_own_gets_dates():
    class Brightest(SgmaFusion):
        """At every position the observation whose tokens are largest, whatever it is."""

        seen: ClassVar[list] = []

        def combine(self, tokens, bias, modalities):
            self.seen.append((tokens.shape[0], modalities))
            size = tokens.norm(dim=3) + (0 if bias is None else bias)
            index = size.argmax(0)[None, ..., None]
            return tokens.gather(0, index.expand(-1, -1, -1, tokens.shape[3]))[0], None

    sgf = SemanticGuidedFusion([8], ["a", "b"], 3, fusion=Brightest, date_periods=[365.25])
    with torch.no_grad():
        sgf[0].date_modulations[1].output.weight.normal_()
    maps = torch.randn(3, 8, 4, 4)  # of "a" two dates, of "b" one
    features = {"a": [maps[None, :2]], "b": [torch.stack([maps[2], torch.full_like(maps[2], torch.nan)])[None]]}
    dates = torch.tensor([[[1.0, 100.0], [2.0, torch.nan]]])
    encoding = sgf.project(features, torch.tensor([[[True, True], [True, False]]]), dates)
    fused = sgf.fuse(encoding).feature_maps[0]
    (count, modalities), tokens = Brightest.seen[-1], encoding.stages[0].tokens
    assert count == 3 and modalities.tolist() == [[0], [0], [1]]
    assert not torch.equal(tokens[2], maps[2].flatten(1).t())  # its date is in the tokens
    size = tokens.norm(dim=2) - torch.tensor([2.0, 2.0, 1.0]).log()[:, None]  # two dates of "a" share its place
    expected = [tokens[size[:, position].argmax(), position] for position in range(16)]
    assert torch.equal(fused[0].flatten(1).t(), torch.stack(expected))


@pytest.mark.parametrize("kind", ["dates", "pixels"])
@torch.no_grad()
def test_modules_take_series_as_the_model_does(kind):
    model = exact_model()
    pixel_values, mask, dates = series(kind, size=(32, 64))
    expected = model.sgma(pixel_values, mask, dates=dates)
    gap = model.config.gap_value
    shown = torch.where(by_pixel(mask, (32, 64))[:, :, BAND_OF], pixel_values, gap).split([3, 1, 2], 2)
    features = {}
    for name, stem, bands in zip(model.config.modalities, model.sgma.stems, shown, strict=True):
        maps = model.sgma.encoder_maps(stem(bands.flatten(0, 1)))
        features[name] = [stage.unflatten(0, bands.shape[:2]) for stage in maps]
    fused = model.sgma.fusion_stages(features, mask, dates=dates)
    for name in ("feature_maps", "robustness"):
        for maps, right in zip(getattr(fused, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(maps, right, **TOLERANCE)
    with pytest.raises(ValueError, match="`dates` are given to a model without `date_periods`"):
        SemanticGuidedFusion([8], ["a"], 3)([[torch.zeros(1, 2, 8, 4, 4)]], dates=torch.zeros(1, 2, 1))
