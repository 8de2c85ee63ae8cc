"""Modality-aware sampling (MAS, arXiv:2603.02505): which modality is trained alone next."""

import torch


MIN_ROBUSTNESS = 1e-6


@torch.no_grad()
def modality_sampling_probabilities(
    robustness: tuple[torch.Tensor, ...] | None,
    fractions: list[torch.Tensor] | None,
    present: torch.Tensor,
    exponent: float = 1.0,
) -> torch.Tensor:
    """MAS: the probability of every modality to be trained alone, larger for the fragile.

    At every position the inverse robustness is normalised over the modalities there, and averaged over positions
    (paper). The mean over the four stages is ours. So is partial coverage: only positions where at least two
    modalities are count, for each modality those that it covers; one without such a position counts 1 / present.
    Without robustness (mean fusion) every present modality has the same probability.

    Args:
        robustness: Robustness maps of the stages, (batch_size, num_modalities, height, width), or None.
        fractions: Covered fractions of the stages' cells, cropped like the maps, or None if all is covered.
        present: Which pairs are there, bool, (batch_size, num_modalities).
        exponent: Power that the probabilities are raised to before they are normalised (ours): 1 is the paper's draw,
            0 uniform over the modalities present, and above 1 fragile ones are drawn more often still.

    Returns:
        Probabilities, float32, (batch_size, num_modalities), 0 for absent modalities; rows sum to 1, or to 0 where
        nothing is present.
    """
    uniform = present.float() / present.sum(1, keepdim=True).clamp_min(1)
    if robustness is None:
        return uniform
    total = torch.zeros_like(uniform)
    for level, maps in enumerate(robustness):
        covered = present[..., None, None].expand_as(maps)
        if fractions is not None:
            covered = covered & (fractions[level] > 0)
        inverse = torch.where(covered, 1 / maps.float().clamp_min(MIN_ROBUSTNESS), 0)
        share = inverse / inverse.sum(1, keepdim=True).clamp_min(1)  # an inverse is never below 1
        contested = covered & (covered.sum(1, keepdim=True) > 1)
        count = contested.flatten(2).sum(2)
        mean = torch.where(contested, share, 0).flatten(2).sum(2) / count.clamp_min(1)
        score = torch.where(count > 0, mean, uniform)
        total += score / score.sum(1, keepdim=True).clamp_min(MIN_ROBUSTNESS)
    powers = torch.where(present, (total / len(robustness)) ** exponent, 0)
    return powers / powers.sum(1, keepdim=True).clamp_min(MIN_ROBUSTNESS)


def sample_modality(probabilities: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw one modality per row by inverting the cumulative distribution.

    Args:
        probabilities: Shape (batch_size, num_modalities), rows sum to 1; what is absent has 0 and is never drawn.
        noise: Uniform numbers in [0, 1), shape (batch_size,).

    Returns:
        Indices, int64, (batch_size,); 0 for a row without any modality.
    """
    cumulative = probabilities.cumsum(1)
    drawn = (cumulative <= noise.to(cumulative).unsqueeze(1) * cumulative[:, -1:]).sum(1)
    # Rounding may carry a number just below 1 past the end.
    last = (probabilities > 0).int().cumsum(1).argmax(1)
    return torch.minimum(drawn, last)
