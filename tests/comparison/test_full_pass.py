"""Networks of another kind than SGMA: what they get, what they may return, and early fusion against the plain way."""

import pickle
import sys

import pytest
import torch
from comparison_fixtures import BACKBONE, TINY, write_scenes
from tiny_models import PVT_V2, RESNET, spread_weights
from transformers import (
    AutoModelForSemanticSegmentation,
    PvtV2Config,
    PvtV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from sgma_hf.comparison.arms import ARMS, Arm, find_arm
from sgma_hf.comparison.arms.dry_run import dry_run
from sgma_hf.comparison.arms.full_pass import FullPassConfig, FullPassForSemanticSegmentation
from sgma_hf.comparison.arms.networks import load_widened, widened
from sgma_hf.comparison.compared_rows import load_metadata
from sgma_hf.comparison.runs import RunSettings, build_model
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.model.cells_sgma import pixel_logits
from sgma_hf.model.losses_sgma import row_losses
from sgma_hf.prediction.agreement import modality_agreement


CHANNELS = {"rgb": 3, "dsm": 1, "sar": 2}
ALL = ["early", "segformer", "upernet"]


class Recorder(torch.nn.Module):
    """Returns what it is told to, and keeps what it got."""

    def __init__(self, config, *, stride=4, loss=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.num_labels, self.stride, self.loss, self.got = config.num_labels, stride, loss, []

    def forward(self, pixel_values, modality_mask, labels=None):
        self.got.append((pixel_values, modality_mask, labels))
        logits = pixel_values[:, :1, :: self.stride, :: self.stride] * self.scale
        logits = logits.repeat(1, self.num_labels, 1, 1) * torch.arange(self.num_labels)[:, None, None]
        found = {"logits": logits}
        return found if self.loss is None or labels is None else found | {"loss": self.loss * self.scale}


@pytest.fixture
def arm(monkeypatch):
    """Registers a network under a name for the time of a test."""

    def register(build):
        monkeypatch.setitem(ARMS, "tried", Arm("tried", "a network that is tried", build=build))
        return "tried"

    return register


def new_model(name, **changes):
    torch.manual_seed(0)
    config = FullPassConfig(
        arm=name,
        modalities=list(CHANNELS),
        modality_channels=list(CHANNELS.values()),
        num_labels=5,
        backbone_config=PVT_V2,
        fusion="mean",
        mas_loss_weight=0,
        decoder_hidden_size=16,
        **changes,
    )
    return FullPassForSemanticSegmentation(config)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 4])
def test_a_network_gets_zeros_for_what_is_missing_and_is_told(arm, stride):
    model = new_model(arm(lambda config: Recorder(config, stride=stride)))
    images = torch.randn(2, 6, 33, 50)
    mask = torch.ones(2, 3, 33, 50, dtype=torch.bool)
    mask[0, 1] = False  # row 0 has no height
    mask[1, 2, :, 40:] = False  # the radar of row 1 ends inside
    mask[1, :, 20:, :8] = False  # and nothing covers a corner of it
    expected = torch.full((2, 6, 64, 64), model.config.gap_value)
    expected[..., :33, :50] = torch.where(mask.repeat_interleave(torch.tensor([3, 1, 2]), 1), images, 0)
    expected[1, :, 20:33, :8] = model.config.gap_value
    images[0, 3] = torch.nan  # what stands in a gap does not matter
    output = model.eval()(images, mask)
    ((shown, told, labels),) = model.network.got
    torch.testing.assert_close(shown, expected, rtol=0, atol=0)
    assert torch.equal(told[..., :33, :50], mask) and not told[..., 33:, :].any() and labels is None
    assert output.logits.shape[2:] == ((9, 13) if stride == 4 else (33, 50))
    assert torch.equal(output.coverage, mask.any(1)) and output.robustness is None
    assert pixel_logits(output.logits, (33, 50)).shape == (2, 5, 33, 50)


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_every_subset_is_a_full_pass_with_the_others_zeroed(name):
    model = spread_weights(new_model(name)).eval()
    images = torch.randn(2, 6, 32, 64)
    encoding = model.encode(images, torch.tensor([[True, True, True], [True, False, True]]))
    zeros = images.clone()
    zeros[:, :3] = 0
    zeros[1, 3] = 0
    output = model.fuse_and_decode(encoding, torch.tensor([False, True, True]))
    plain = model.network.model(zeros).logits  # the model behind the arm, which knows of no modalities
    torch.testing.assert_close(output.logits, plain)
    nothing_in_row_one = model.fuse_and_decode(encoding, torch.tensor([False, True, False]))
    assert nothing_in_row_one.coverage[0].all() and not nothing_in_row_one.coverage[1].any()
    alone = model(images, torch.tensor([[False, True, True], [False, False, True]]))
    torch.testing.assert_close(alone.logits, output.logits)


@pytest.mark.parametrize("name", ALL)
def test_where_nothing_covers_the_gradient_of_a_new_model_is_no_larger(name):
    model = new_model(name).train()
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


@pytest.mark.parametrize("name", ALL)
def test_all_bands_learn_and_no_weight_is_left_over(name):
    model = new_model(name).train()
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    labels[:, :, 16:] = 1
    output = model(torch.randn(2, 6, 32, 32), torch.tensor([[True, True, True], [True, True, False]]), labels=labels)
    output.loss.backward()
    assert set(output.loss_dict) == {"loss_sgf"}
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    first = next(weight for weight in model.parameters() if weight.ndim == 4 and weight.shape[2] > 1)
    assert first.shape[1] == 6 and (first.grad.flatten(2).abs().sum((0, 2)) > 0).all()


def test_series_are_refused_in_one_line(arm):
    model = new_model(arm(Recorder))
    with pytest.raises(ValueError, match=r"are series, .*; the network 'tried' takes one image") as refused:
        model(torch.zeros(1, 2, 6, 32, 32))
    assert "\n" not in str(refused.value)


def test_a_network_may_have_a_loss_of_its_own(arm):
    """It is a mean over the labelled pixels; of a step of several batches it counts by theirs."""
    model = new_model(arm(lambda config: Recorder(config, loss=3.0))).train()
    images, labels = torch.randn(1, 6, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[:, :8] = 255
    output = model(images, labels=labels)
    assert output.loss.item() == 3.0 and torch.equal(model.network.got[0][2], labels)
    assert model(images, labels=labels, num_items_in_batch=4 * 768).loss.item() == 0.75
    assert model.eval()(images, labels=labels).loss.item() != 3.0  # that of all arms
    assert model.network.got[-1][2] is None


def test_without_one_its_loss_is_that_of_all_arms(arm):
    model = new_model(arm(Recorder)).train()
    images, labels = torch.randn(2, 6, 32, 32), torch.randint(5, (2, 32, 32))
    output = model(images, labels=labels)
    sums, counts = row_losses(model.config, output.logits, labels)
    torch.testing.assert_close(output.loss, 2 * sums.sum() / counts.sum())


@torch.no_grad()
def test_a_temperature_counts_with_labels_and_without_but_not_in_training(arm):
    model = new_model(arm(Recorder)).eval()
    pixel_values, labels = torch.randn(1, 6, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
    plain = model(pixel_values).logits
    model.config.temperature = 2.0
    for outputs in (model(pixel_values), model(pixel_values, labels=labels)):
        assert torch.equal(outputs.logits, plain / 2)
    assert torch.equal(model.train()(pixel_values, labels=labels).logits, plain)


@torch.no_grad()
def test_agreement_of_pixels_is_averaged_over_cells(arm):
    """Against a loop over the cells of a network with logits of every pixel."""
    model = new_model(arm(lambda config: Recorder(config, stride=1))).eval()
    encoding = model.encode(torch.randn(1, 6, 30, 34))
    found = modality_agreement(model, encoding)
    assert found.shape == (1, 3, 8, 9)
    own, rest = (
        model.fuse_and_decode(encoding, torch.tensor(subset)).logits.softmax(1)
        for subset in ([False, True, False], [True, False, True])
    )
    pixels = (own * rest).sqrt().sum(1)[0]
    for row in range(8):
        for column in range(9):
            cell = pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            torch.testing.assert_close(found[0, 1, row, column], cell.mean().clamp(max=1))


def test_a_batch_of_one_row_trains_upernet_too():
    model = new_model("upernet").train()
    assert model(torch.randn(1, 6, 32, 32), labels=torch.zeros(1, 32, 32, dtype=torch.int64)).loss.isfinite()


def test_encoders_of_transformers_arms_are_as_large_as_ours():
    ours = build_model(ARMS["mean"], RunSettings(), _metadata()).sgma.backbone.num_parameters()
    for name in ("segformer", "upernet"):
        model = build_model(ARMS[name], RunSettings(), _metadata()).network.model
        encoder = model.segformer if name == "segformer" else model.backbone
        assert abs(encoder.num_parameters() / ours - 1) < 0.1, name
    resnet = RunSettings(**TINY | {"backbone_config": {"model_type": "resnet"}})  # 23.5 million: as B2
    assert build_model(ARMS["segformer"], resnet, _metadata()).network.model.config.depths == [3, 4, 6, 3]


def _metadata():
    return DatasetMetadata(
        modalities=list(CHANNELS),
        modality_channels=list(CHANNELS.values()),
        modality_dtypes=["float32"] * 3,
        class_names=["a", "b"],
    )


def test_a_pretrained_stem_is_repeated_for_every_modality():
    kernel = torch.arange(12.0).view(1, 3, 2, 2)
    wide = widened(kernel, [3, 1, 2])
    torch.testing.assert_close(wide[:, :3], kernel / 3)
    torch.testing.assert_close(wide[:, 3:4], kernel.sum(1, keepdim=True) / 3)
    torch.testing.assert_close(wide[:, 4:], kernel.sum(1, keepdim=True).repeat(1, 2, 1, 1) / 6)
    image = torch.randn(1, 1, 4, 4)  # the same grey value in every band of every modality
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(
        conv(image.repeat(1, 6, 1, 1), wide), conv(image.repeat(1, 3, 1, 1), kernel), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["pvt_v2", "resnet"])
def test_encoders_start_from_pretrained_weights(tmp_path, kind):
    torch.manual_seed(3)
    values = {key: value for key, value in (BACKBONE if kind == "pvt_v2" else RESNET).items() if key != "model_type"}
    config_class, model_class = {
        "pvt_v2": (PvtV2Config, PvtV2ForImageClassification),
        "resnet": (ResNetConfig, ResNetForImageClassification),
    }[kind]
    pretrained = model_class(config_class(**values))
    pretrained.save_pretrained(tmp_path)
    weights = pretrained.base_model.state_dict()
    stem = next(name for name, value in weights.items() if value.ndim == 4)
    settings = RunSettings(**TINY | {"backbone_config": values | {"model_type": kind}, "backbone": str(tmp_path)})
    for name in ("sgma", "early", "upernet"):
        model = build_model(ARMS[name], settings, _metadata())
        found = model.state_dict()
        for key, weight in weights.items():
            (same,) = (value for entry, value in found.items() if entry.endswith(f"backbone.{key}"))
            expected = weight if key != stem or name == "sgma" else widened(weight, [3, 1, 2])
            assert torch.equal(same, expected), (name, key)
    with pytest.raises(ValueError, match="Segformer has no method `load_pretrained"):
        build_model(ARMS["segformer"], settings, _metadata())
    other = build_model(
        ARMS["early"], RunSettings(**TINY | {"backbone_config": {"model_type": "convnext"}}), _metadata()
    )
    with pytest.raises(ValueError, match=r"do not fit|lacks"):
        load_widened(other.network.model.sgma.backbone, str(tmp_path), other.network.config)


@pytest.mark.parametrize("name", ALL)
def test_a_model_is_saved_and_loaded_by_its_configuration(name, tmp_path):
    model = spread_weights(new_model(name, tile_size=64)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype="float32")
    assert type(loaded) is type(model) and not loaded.training and loaded.config.arm == name
    assert loaded.config.tile_size == 64 and loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_kept_weights_of_another_network_are_refused_in_one_line(arm, tmp_path):
    new_model(arm(Recorder)).save_pretrained(tmp_path)
    arm(lambda config: torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not those of the arm tried as it is now") as error:
        FullPassForSemanticSegmentation.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def write_module(folder, text):
    (folder / "somebodys.py").write_text("import torch\nfrom sgma_hf.comparison.arms import Arm\n\n" + text)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes `somebodys.py` into the working folder, which is not importable by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def write(text):
        sys.modules.pop("somebodys", None)
        write_module(tmp_path, text)

    yield write
    sys.modules.pop("somebodys", None)


NETWORK = """
class Net(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = torch.nn.Conv2d(sum(config.modality_channels), config.num_labels, 1)

    def forward(self, pixel_values, modality_mask, labels=None):
        {body}

ARM = Arm("net", "one convolution", build=Net)
OTHER = 3
"""


def test_an_arm_of_a_module_in_the_working_folder_goes_by_its_place(module):
    module(NETWORK.format(body='return {"logits": self.layer(pixel_values)}'))
    arm = find_arm("somebodys:ARM")
    assert (arm.name, arm.description) == ("somebodys:ARM", "one convolution")
    assert set(arm.definition()) == {"config", "training", "source_sha256"}
    assert pickle.loads(pickle.dumps(arm)) == arm  # as another process gets it
    before = arm.definition()
    module(NETWORK.format(body='return {"logits": 2 * self.layer(pixel_values)}'))
    assert find_arm("somebodys:ARM").definition() != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere:ARM",
            r"The arm nowhere:ARM: the module 'nowhere' cannot be imported: ModuleNotFoundError: No module",
        ),
        ("somebodys:AMR", r"the module has no `Arm` of that name; did you mean ARM\? it has ARM"),
        ("somebodys:OTHER", r"no `Arm` of that name"),
        ("somebodys:", r"no `Arm` of that name"),
    ],
)
def test_arms_that_cannot_be_found_are_named_in_one_line(module, name, message):
    module(NETWORK.format(body="return None"))
    with pytest.raises(ValueError, match=message) as error:
        find_arm(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["def broken(:", "raise RuntimeError('two\\nlines')", "import nothing_like_it"])
def test_a_module_that_fails_is_named_in_one_line(module, content):
    module(content)
    with pytest.raises(ValueError, match="'somebodys' cannot be imported: ") as error:
        find_arm("somebodys:ARM")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            'return {"logits": self.layer(pixel_values)[..., ::2, ::2]}',
            r"it fails in its first step.*`logits` has shape",
        ),
        (
            'return {"logits": self.layer(pixel_values)[:, 1:]}',
            r"`logits` has shape \(2, 4, 32, 32\); expected \(2, 5,",
        ),
        ("return self.layer(pixel_values)", "returned a Tensor; expected a dict or a ModelOutput with `logits`"),
        ('return {"scores": self.layer(pixel_values)}', "expected a dict or a ModelOutput with `logits`"),
        ("return self.layer(pixel_values[:, 1:])", "RuntimeError: Given groups=1, weight of size"),
        ('return {"logits": self.layer(pixel_values).detach()}', "does not require grad"),
        ('return {"logits": self.layer(pixel_values) / 0}', "the loss is nan"),
    ],
)
def test_networks_that_cannot_work_are_told_before_any_training(module, scenes, body, message):
    module(NETWORK.format(body=body))
    arm, settings = find_arm("somebodys:ARM"), RunSettings(**TINY)
    with pytest.raises(ValueError, match=f"^The arm somebodys:ARM: .*{message}") as error:
        dry_run(arm.name, lambda: build_model(arm, settings, load_metadata(scenes)), settings.crop_size)
    assert "\n" not in str(error.value)


def test_what_builds_no_network_is_told_too(module, scenes):
    module('ARM = Arm("net", "nothing", build=lambda config: None)\n')
    arm, settings = find_arm("somebodys:ARM"), RunSettings(**TINY)
    with pytest.raises(ValueError, match="it cannot be built: TypeError: `build` returned a NoneType"):
        dry_run(arm.name, lambda: build_model(arm, settings, load_metadata(scenes)), settings.crop_size)


def test_a_dry_run_leaves_the_global_random_state_alone(scenes):
    state = torch.get_rng_state()
    dry_run("sgma", lambda: build_model(ARMS["sgma"], RunSettings(**TINY), load_metadata(scenes)), 32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "demo")
