"""What series are usually made into before sensors are fused: attention over the dates of each, or monthly means."""

import copy
import math

import torch
from torch import nn
from transformers.utils import ModelOutput

from ...model.cells_sgma import LOGITS_STRIDE, resize
from ...model.configuration_sgma import SgmaConfig
from ...model.layers_sgma import ABSENT_SCORE
from ...model.modeling_sgma import SgmaForSemanticSegmentation


DAYS_OF_YEAR, DAYS_OF_MONTH = 365.25, 30.4375
_PE_BASE = 1000.0  # of the sinusoids of days, as in U-TAE
_KEY_CHANNELS = 4  # of a head, as in L-TAE


class _OfSeries(nn.Module):
    """A network that takes series: a model of the package of the run's configuration, without branches."""

    takes_series = True

    def __init__(self, config: SgmaConfig, **changes):
        super().__init__()
        names = ("modalities", "modality_channels", "id2label", "label2id", "decoder_hidden_size", "logits_stride")
        values = {name: getattr(config, name) for name in (*names, "modality_adapter_size", "dice_loss_weight")}
        values |= {"backbone_config": copy.deepcopy(config.backbone_config), "mas_loss_weight": 0.0}
        self.model = SgmaForSemanticSegmentation(SgmaConfig(**values | changes))

    def load_pretrained(self, name_or_path: str) -> None:
        """Have the encoder start from pretrained weights."""
        self.model = SgmaForSemanticSegmentation.from_backbone_pretrained(name_or_path, self.model.config)


class MonthlyMean(_OfSeries):
    """SGMA over composites: of each sensor, month and pixel the mean of what is there, dated mid-month.

    Months are counted from the year in which a row begins. Images of unknown date are averaged to one of their own.
    """

    def forward(
        self, pixel_values: torch.Tensor, modality_mask: torch.Tensor, labels=None, dates: torch.Tensor | None = None
    ) -> ModelOutput:
        """Segment a batch, whatever is missing."""
        if dates is None:
            return ModelOutput(logits=self.model(pixel_values, modality_mask).logits)
        start = first_year(dates)
        month = ((dates - start) / DAYS_OF_MONTH).floor()
        slots = torch.where(month.isnan(), 0, month + 1).long()  # (B, T, M)
        of_band = [index for index, bands in enumerate(self.model.config.modality_channels) for _ in range(bands)]
        counts = _sum_by_slot(modality_mask.to(pixel_values.dtype), slots)  # (B, S, M, H, W)
        values = torch.where(modality_mask[:, :, of_band], pixel_values, 0)
        means = _sum_by_slot(values, slots[:, :, of_band]) / counts[:, :, of_band].clamp_min(1)
        middle = start + (torch.arange(counts.shape[1], device=dates.device)[:, None] - 0.5) * DAYS_OF_MONTH
        middle = middle.repeat(1, 1, dates.shape[2])  # (B, S, M)
        middle[:, 0] = torch.nan
        return ModelOutput(logits=self.model(means, counts > 0, dates=middle).logits)


class Ltae(_OfSeries):
    """L-TAE of each sensor over its dates, as U-TAE has it (arXiv:2107.07933), then static semantic-guided fusion.

    Learned queries attend to the dates at the deepest stage, whose features have the sinusoids of their days added;
    heads share the channels. The attention is brought to the size of the other stages and averages their maps. What is
    not covered is left out there, so that clouds of single pixels count as far as the deepest cells show them.
    """

    def __init__(self, config: SgmaConfig):
        super().__init__(config, fusion="sgf", date_periods=None)
        channels = self.model.sgma.channels
        self.heads, deepest = math.gcd(16, *channels), channels[-1]
        count = config.num_modalities
        self.norms = nn.ModuleList(nn.GroupNorm(self.heads, deepest) for _ in range(count))
        self.keys = nn.ModuleList(nn.Linear(deepest, self.heads * _KEY_CHANNELS) for _ in range(count))
        self.queries = nn.Parameter(torch.randn(count, self.heads, _KEY_CHANNELS) / math.sqrt(_KEY_CHANNELS))
        self.mixers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(deepest, deepest, 1), nn.GroupNorm(self.heads, deepest), nn.ReLU())
            for _ in range(count)
        )

    def forward(
        self, pixel_values: torch.Tensor, modality_mask: torch.Tensor, labels=None, dates: torch.Tensor | None = None
    ) -> ModelOutput:
        """Segment a batch, whatever is missing."""
        if pixel_values.ndim == 4:
            pixel_values, modality_mask = pixel_values.unsqueeze(1), modality_mask.unsqueeze(1)
        if dates is None:
            dates = pixel_values.new_full((*modality_mask.shape[:3],), torch.nan)
        days = dates - first_year(dates)
        sgma = self.model.sgma
        parts = pixel_values.split(self.model.config.modality_channels, dim=2)
        features = {}
        for index, (name, rasters) in enumerate(zip(self.model.config.modalities, parts, strict=True)):
            covered = modality_mask[:, :, index]  # (B, T, H, W)
            there = covered.flatten(2).any(2)  # (B, T)
            if not there.any():
                continue
            shown = torch.where(covered[there].unsqueeze(1), rasters[there], self.model.config.gap_value)
            maps = sgma.encoder_maps(sgma.stems[index](shown))
            features[name] = self._over_dates(index, maps, covered, there, days[:, :, index])
        if not features:  # of no modality is anything there, in no row
            height, width = pixel_values.shape[-2:]
            shape = (len(pixel_values), self.model.config.num_labels, height // LOGITS_STRIDE, width // LOGITS_STRIDE)
            return ModelOutput(logits=pixel_values.new_zeros(shape))
        coverage = modality_mask.any(1)
        maps = sgma.fusion_stages(features, coverage).feature_maps
        return ModelOutput(logits=self.model.decode_head(maps))

    def _over_dates(self, index, maps, covered, there, days):
        """Maps of the dates that are there, (P, C, h, w) -> those of the rows, (B, C, h, w), at all stages."""
        spread = []  # (B, T, C, h, w), 0 where nothing is
        for stage in maps:
            whole = stage.new_zeros((*there.shape, *stage.shape[1:]))
            whole[there] = stage
            spread.append(whole)
        attention = self._attention(index, spread[-1], days)  # (B, T, heads, h, w)
        results = []
        for stage in spread:
            size = stage.shape[-2:]
            seen = nn.functional.adaptive_avg_pool2d(covered.to(stage.dtype), size)[:, :, None]  # (B, T, 1, h, w)
            scores = resize(attention.flatten(0, 1), size).unflatten(0, there.shape)
            scores = torch.where(seen > 0, scores + seen.clamp_min(1e-6).log(), ABSENT_SCORE)
            weights = torch.softmax(scores, dim=1) * (seen > 0)
            grouped = stage.unflatten(2, (self.heads, -1))  # (B, T, heads, C / heads, h, w)
            results.append((weights.unsqueeze(3) * grouped).sum(1).flatten(1, 2))
        results[-1] = self.mixers[index](results[-1])
        return results

    def _attention(self, index, deepest, days):
        """Scores of the dates by head and cell, (B, T, heads, h, w), of maps (B, T, C, h, w) and days (B, T)."""
        normed = self.norms[index](deepest.flatten(0, 1)).unflatten(0, deepest.shape[:2])
        dated = normed + _sinusoids(days, deepest.shape[2], self.heads)[..., None, None]
        keys = self.keys[index](dated.movedim(2, -1)).unflatten(-1, (self.heads, _KEY_CHANNELS))
        scores = (keys * self.queries[index]).sum(-1) / math.sqrt(_KEY_CHANNELS)  # (B, T, h, w, heads)
        return scores.movedim(-1, 2)


def _sum_by_slot(values: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Add up images (B, T, C, H, W) by the slot of each, (B, T, C) -> (B, S, C, H, W)."""
    sums = values.new_zeros((values.shape[0], int(slots.max()) + 1, *values.shape[2:]))
    return sums.scatter_add(1, slots[..., None, None].expand_as(values), values)


def first_year(dates: torch.Tensor) -> torch.Tensor:
    """The day on which the year begins that holds the first date of each row (B, T, M) -> (B, 1, 1); 0 without any."""
    first = torch.where(dates.isnan(), torch.inf, dates).amin((1, 2), keepdim=True)
    return torch.where(first.isinf(), 0, (first / DAYS_OF_YEAR).floor() * DAYS_OF_YEAR)


def _sinusoids(days: torch.Tensor, channels: int, heads: int) -> torch.Tensor:
    """Sines and cosines of days (B, T), the same for every head, (B, T, channels); 0 where a day is not known."""
    width = channels // heads
    place = torch.arange(width, device=days.device)
    angles = days.unsqueeze(-1) / _PE_BASE ** (2 * (place // 2) / width)
    waves = torch.where(place % 2 == 0, angles.sin(), angles.cos())
    return torch.where(days.isnan().unsqueeze(-1), 0, waves).repeat(1, 1, heads)
