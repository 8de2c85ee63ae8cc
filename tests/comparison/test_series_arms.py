"""Arms that make one image of a series: L-TAE and monthly means, against loops, and in a comparison."""

import numpy as np
import pytest
import torch
from comparison_fixtures import BACKBONE, FLAGS, TINY
from series_rows import series_metadata, series_rows

from sgma_hf.commands.compare import main
from sgma_hf.comparison.arms import ARMS
from sgma_hf.comparison.arms.full_pass import FullPassConfig, FullPassForSemanticSegmentation
from sgma_hf.comparison.arms.series_networks import DAYS_OF_MONTH, first_year
from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.card.model_figures import model_figures_of
from sgma_hf.comparison.card.report import make_card
from sgma_hf.comparison.runs import Run, RunSettings, execute_run
from sgma_hf.converters.writing.parquet import ParquetDatasetWriter


def _model(arm):
    torch.manual_seed(0)
    config = FullPassConfig(
        modalities=["s2", "s1"],
        modality_channels=[4, 2],
        num_labels=3,
        backbone_config=BACKBONE,
        decoder_hidden_size=16,
        num_attention_heads=2,
        date_periods=[365.25, 182.6],
        arm=arm,
        fusion="mean",
        mas_loss_weight=0.0,
    )
    return FullPassForSemanticSegmentation(config)


@pytest.fixture(params=["ltae", "monthly_mean"])
def model(request):
    return _model(request.param)


@pytest.fixture
def series():
    """Two rows of up to five dates of two sensors, with gaps in pixels, one date unknown."""
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(2, 5, 6, 64, 40, generator=generator)
    mask = (torch.rand(2, 5, 2, generator=generator) > 0.3)[..., None, None].repeat(1, 1, 1, 64, 40)
    mask[:, 0], mask[0, 1, 0, :, 20:] = True, False
    dates = 6900 + 300 * torch.rand(2, 5, 2, generator=generator)
    dates[0, 2, 0] = torch.nan
    return pixel_values, mask, dates


def test_series_are_segmented_whatever_is_missing(model, series):
    pixel_values, mask, dates = series
    labels = torch.randint(0, 3, (2, 64, 40), generator=torch.Generator().manual_seed(2))
    output = model.train()(pixel_values, mask, labels=labels, dates=dates)
    output.loss.backward()
    assert output.loss.isfinite() and not [n for n, p in model.named_parameters() if p.grad is None]
    model.eval()
    with torch.no_grad():
        expected = model(pixel_values, mask, dates=dates)
        order = torch.tensor([3, 0, 4, 1, 2])
        permuted = model(pixel_values[:, order], mask[:, order], dates=dates[:, order])
        torch.testing.assert_close(permuted.logits, expected.logits, rtol=0, atol=1e-4)
        hidden = torch.where(mask.repeat_interleave(torch.tensor([4, 2]), 2), pixel_values, torch.nan)
        torch.testing.assert_close(model(hidden, mask, dates=dates).logits, expected.logits, rtol=0, atol=0)
        encoding = model.encode(pixel_values, mask, dates=dates)
        early = torch.nan_to_num(dates) < 7000
        chosen = early & torch.tensor([True, False])
        fused = model.fuse_and_decode(encoding, chosen)
        again = model(pixel_values, mask & chosen[..., None, None], dates=dates)
        torch.testing.assert_close(fused.logits, again.logits, rtol=0, atol=1e-5)
        assert torch.equal(fused.coverage, (mask & chosen[..., None, None]).flatten(1, 2).any(1))
        alone = model.fuse_and_decode(encoding, torch.tensor([False, True]))
        torch.testing.assert_close(
            alone.logits, model(pixel_values, mask & torch.tensor([False, True])[:, None, None], dates=dates).logits
        )
        assert model(pixel_values[:, 0], mask[:, 0]).logits.shape == (2, 3, 16, 10)  # one image of each
        static = model(pixel_values[:, :1], mask[:, :1], dates=torch.full((2, 1, 2), torch.nan)).logits
        torch.testing.assert_close(static, model(pixel_values[:, 0], mask[:, 0]).logits, rtol=0, atol=1e-4)


def test_monthly_means_are_those_of_a_loop(series, monkeypatch):
    model, (pixel_values, mask, dates), given = _model("monthly_mean").eval(), series, []
    inner = model.network.model
    forward = type(inner).forward

    def kept(self, pixel_values, modality_mask=None, **kwargs):
        given.append((pixel_values.numpy(), modality_mask.numpy(), kwargs["dates"].numpy()))
        return forward(self, pixel_values, modality_mask, **kwargs)

    monkeypatch.setattr(type(inner), "forward", kept)
    with torch.no_grad():
        model(pixel_values, mask, dates=dates)
    ((means, covered, middles),) = given
    means, covered = means[..., :40], covered[..., :40]  # without padding
    bands, checked = {0: range(4), 1: range(4, 6)}, 0
    for row in range(2):
        year = np.floor(np.nanmin(dates[row]) / 365.25) * 365.25
        for m, channels in bands.items():
            months = np.floor((dates[row, :, m].numpy() - np.float32(year)) / DAYS_OF_MONTH)
            for slot in range(means.shape[1]):
                of_slot = [t for t, month in enumerate(months) if (0 if np.isnan(month) else month + 1) == slot]
                there = [[mask[row, t, m].numpy(), pixel_values[row, t].numpy()] for t in of_slot]
                count = sum((seen.astype(int) for seen, _ in there), np.zeros((64, 40), int))
                np.testing.assert_array_equal(covered[row, slot, m], count > 0)
                for channel in channels:
                    total = sum((np.where(seen, values[channel], 0) for seen, values in there), np.zeros((64, 40)))
                    expected = (total / np.maximum(count, 1))[count > 0]
                    np.testing.assert_allclose(means[row, slot, channel][count > 0], expected, atol=1e-5)
                    checked += len(expected)
                middle = np.nan if slot == 0 else year + (slot - 0.5) * DAYS_OF_MONTH
                np.testing.assert_allclose(middles[row, slot, m], middle, rtol=1e-6)
    assert checked


def test_attention_over_dates_is_that_of_a_loop(series):
    model, (_, _, dates) = _model("ltae").double().eval(), series
    network, generator = model.network, torch.Generator().manual_seed(3)
    sizes = ((8, 8), (8, 4), (16, 2), (16, 1))  # channels and side of the stages
    maps = [torch.randn(4, c, side, side, generator=generator).double() for c, side in sizes]
    there = torch.tensor([[True, True, False, True, True]])
    covered = there[..., None, None].repeat(1, 1, 32, 32)
    covered[0, 0, :, :16] = False
    days = (dates[:1, :, 0] - first_year(dates[:1, :, :1])[:, :, 0]).double()
    with torch.no_grad():
        found = network._over_dates(0, maps, covered, there, days)
        deepest = torch.zeros(5, 16, 1, 1).double()
        deepest[there[0]] = maps[-1]
        width, heads = 16 // network.heads, network.heads
        scores = torch.zeros(5, heads)
        for t in range(5):
            normed = network.norms[0](deepest[t : t + 1])[0, :, 0, 0]
            waves = torch.zeros(width)
            for place in range(width):
                angle = days[0, t] / 1000 ** (2 * (place // 2) / width)
                waves[place] = 0 if days[0, t].isnan() else (angle.sin() if place % 2 == 0 else angle.cos())
            keys = network.keys[0](normed + waves.repeat(heads)).view(heads, 4)
            scores[t] = (keys * network.queries[0]).sum(-1) / 2
        for level, stage in enumerate(maps[:-1]):
            whole = torch.zeros(5, *stage.shape[1:]).double()
            whole[there[0]] = stage
            side, size = 32 // stage.shape[-1], stage.shape[1] // heads
            for y, x in np.ndindex(*stage.shape[-2:]):
                seen = covered[0, :, y * side : (y + 1) * side, x * side : (x + 1) * side].double().mean((1, 2))
                for head in range(heads):
                    weights = seen * scores[:, head].exp()
                    part = whole[:, head * size : (head + 1) * size, y, x]
                    expected = (weights[:, None] / weights.sum() * part).sum(0)
                    actual = found[level][0, head * size : (head + 1) * size, y, x]
                    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of series in three splits."""
    folder = tmp_path_factory.mktemp("series") / "data"
    with ParquetDatasetWriter(folder, series_metadata(), title="Series") as writer:
        for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
            for row in series_rows(4, size=32, seed=seed):
                writer.write(split, *row)
    return str(folder)


def test_they_are_compared_on_shares_of_the_dates(data, tmp_path):
    settings = RunSettings(**TINY, dates=["all", "half"])
    runs = [Run(ARMS[name], 0, data, settings) for name in ("sgf", "ltae", "monthly_mean")]
    rows = [execute_run(run, keep_models=str(tmp_path / "models")) for run in runs]
    pixels = [[s["pixels"] for s in row["dates"]["conditions"]["half"]["combinations"].values()] for row in rows]
    assert pixels[0] == pixels[1] == pixels[2] and all(row["dates"]["average_miou"] is not None for row in rows)
    card = make_card(rows).markdown()
    assert "| `ltae` |" in card and "| `monthly_mean` |" in card and "With some of the dates" in card
    pytest.importorskip("matplotlib")
    figures = model_figures_of(group_runs(rows)[0], str(tmp_path / "models"), data, row_ids=["row0", "row3"])
    titles = [[axes.get_title() for axes in figures[name].axes[:4]] for name in ("rows_1", "rows_2")]
    assert titles == [["s2", "vv", "dsm", "labels"]] * 2
    figures = model_figures_of(group_runs(rows)[0], str(tmp_path / "models"), data, row_ids=["row0"])
    stages = [axes.get_title() for axes in figures["features"].axes if axes.get_title()]
    assert stages == [f"sgf, stage {stage}" for stage in (1, 2, 3)]  # the last has one cell, and one has no plane


def test_networks_of_one_image_are_refused_before_any_training(data, tmp_path, capsys):
    flags = ["--dataset", data, "--output", str(tmp_path / "lines.jsonl"), "--seeds", "0", *FLAGS]
    for words, message in (
        (["--arms", "sgf", "early"], "The arm early: it fails in its first step, on 2 rows of 32 x 32 pixels: "),
        (
            ["--arms", "sgf", "--corruptions"],
            "`--corruptions` is for rows of one date; a row here has up to 4 of 's2'",
        ),
    ):
        capsys.readouterr()
        assert main([*flags, *words]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    with pytest.raises(ValueError, match="the network 'early' takes one image of each modality"):
        execute_run(Run(ARMS["early"], 0, data, RunSettings(**TINY)))
    assert not (tmp_path / "lines.jsonl").exists()
