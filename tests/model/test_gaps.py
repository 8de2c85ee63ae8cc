"""Training is as well conditioned with gaps as without: gradients of the first step, and half precision."""

import pytest
import torch
from tiny_models import EVERY_BACKBONE, tiny_config, tiny_model

from sgma_hf import SgmaConfig


SIZE = (64, 64)


def images(batch_size=2, size=SIZE, seed=0):
    """Smooth surfaces with a little noise, and classes that they decide."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch_size, 6, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    labels = (smooth[:, 3] > 0).long() + 2 * (smooth[:, 0] > 0.3).long()
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator), labels


def masks(size=SIZE, batch_size=2):
    """Gaps as they occur: all of a kind in every row, which no other row can make up for."""
    height, width = size
    everything = torch.ones(batch_size, 3, height, width, dtype=torch.bool)
    corner, third, edge = (everything.clone() for _ in range(3))
    corner[:, 0, : height // 2, : width // 2] = False
    third[:, 1, :, : width // 3] = False
    edge[..., width - width // 4 :] = False
    kept = torch.rand(batch_size, 1, height, width, generator=torch.Generator().manual_seed(0)) > 0.1
    return {"corner": corner, "third": third, "edge": edge, "tenth": kept & everything}


def gradient_norm(model, pixel_values, labels, mask=None):
    model.zero_grad()
    noise = torch.full((labels.shape[0],), 0.3)
    model(pixel_values, mask, labels=labels, sampling_noise=noise).loss.backward()
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()


def train(model, num_steps, seed=0):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(num_steps):
        gradient_norm(model, *images(seed=seed + step), list(masks().values())[step % 4])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("name", EVERY_BACKBONE)
@pytest.mark.parametrize("num_steps", [0, 4], ids=["new", "trained"])
def test_gaps_do_not_make_the_gradient_larger(name, num_steps):
    model = tiny_model(backbone_config=EVERY_BACKBONE[name]).train()
    train(model, num_steps)
    pixel_values, labels = images(seed=100)
    without = gradient_norm(model, pixel_values, labels)
    norms = {kind: gradient_norm(model, pixel_values, labels, mask) for kind, mask in masks().items()}
    norms["padding"] = gradient_norm(model, pixel_values[..., :50, :40], labels[:, :50, :40])
    assert all(norm < 3 * without for norm in norms.values()), (without, norms)


def half_precision_training(model, num_steps):
    """Losses of steps with gaps under float16, the scale of the last one, and how many were left out."""
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.amp.GradScaler("cpu")
    losses, skipped = [], 0
    for step in range(num_steps):
        pixel_values, labels = images(seed=step)
        noise = torch.rand(2, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.float16):
            output = model(pixel_values, list(masks().values())[step % 4], labels=labels, sampling_noise=noise)
        optimizer.zero_grad()
        scaler.scale(output.loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        losses.append(output.loss.item())
    return losses, scaler.get_scale(), skipped


# Not swinv2: where its window does not divide a map, transformers pads it with vectors of zeros and divides them by
# their length, 0 / 0 in float16, with gaps or without.
@pytest.mark.parametrize(
    ("name", "num_steps"),
    [
        ("pvt_v2", 12),
        *(pytest.param(name, 100, marks=pytest.mark.long) for name in EVERY_BACKBONE if name != "swinv2"),
    ],
)
def test_half_precision_trains_with_gaps(name, num_steps):
    model = tiny_model(backbone_config=EVERY_BACKBONE[name]).train()
    losses, scale, skipped = half_precision_training(model, num_steps)
    few = num_steps // 4
    assert sum(losses[-few:]) < 0.9 * sum(losses[:few]), losses
    assert scale > 1 and skipped <= 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", masks())
def test_what_stands_in_a_gap_changes_nothing_in_half_precision(kind, dtype):
    model, (pixel_values, labels), mask = tiny_model().train(), images(), masks()[kind]
    gone = ~mask.repeat_interleave(torch.tensor([3, 1, 2]), dim=1)
    results = []
    for value in (0.0, float("nan"), float("inf"), 1e30):
        with torch.autocast("cpu", dtype):
            output = model(
                pixel_values.masked_fill(gone, value), mask, labels=labels, sampling_noise=torch.tensor([0.2, 0.8])
            )
        model.zero_grad()
        output.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([output.logits, output.loss, *gradients])
    assert all(torch.isfinite(tensor).all() for tensor in results[0])
    assert all(all(map(torch.equal, results[0], other)) for other in results[1:])


def test_padding_is_a_gap():
    model, (pixel_values, _) = tiny_model(), images()
    mask = torch.zeros(2, 3, *SIZE, dtype=torch.bool)
    mask[..., :50, :40] = True
    with torch.no_grad():
        whole, cut = model(pixel_values, mask).logits, model(pixel_values[..., :50, :40]).logits
    torch.testing.assert_close(whole[..., :13, :10], cut)


def test_a_checkpoint_of_format_1_keeps_its_gaps_at_the_mean(tmp_path):
    old = tiny_model(format_version=1)
    old.save_pretrained(tmp_path)
    config = SgmaConfig.from_pretrained(tmp_path)
    assert (config.format_version, config.gap_value) == (1, 0.0)
    new = tiny_config()
    assert new.format_version == 2 and new.gap_value > 0
