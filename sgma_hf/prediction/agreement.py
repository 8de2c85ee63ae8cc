"""Whether a modality says the same as the others: what tells that one is noisy, out of register or of another place.

Robustness maps say what the fused prediction relies on. They are made by comparing each modality with a reference that
it takes part in, and do not notice a modality that shows something else than the others. Its own prediction does.
"""

import functools
from collections.abc import Sequence

import torch

from ..model.cells_sgma import LOGITS_STRIDE, grid_size, logits_stride, touched_cells
from ..model.encoding_sgma import SgmaEncoding
from ..model.modeling_sgma import SgmaForSemanticSegmentation


@torch.no_grad()
def modality_agreement(
    model: SgmaForSemanticSegmentation,
    encoding: SgmaEncoding,
    modalities: Sequence[int] | None = None,
) -> torch.Tensor:
    """Compare the prediction from each modality alone with that from all the others.

    The agreement of two predictions p and q of a cell is the Bhattacharyya coefficient, the sum over the classes of
    sqrt(p q): 1 where they are equal, 0 where they give no class in common any probability. Fragile modalities agree
    less by nature: compare a modality with itself on scenes that are known to be good. It takes three modalities to
    tell which one is wrong: two have the same agreement with each other.

    Everything is fused from the one encoding, twice for each modality, and of two modalities once for each.

    Args:
        model: An SGMA model with a segmentation head, in eval mode, or a baseline with the same `fuse_and_decode`.
        encoding: What `model.encode` returned.
        modalities: Indices of those to compare with their others. None: all.

    Returns:
        float32 in [0, 1], (batch_size, num_modalities, ceil(height / 4), ceil(width / 4)); NaN in cells without a
        pixel that the modality and another one cover, and for modalities that were not asked for.
    """
    count = encoding.present.shape[1]
    rows, columns = grid_size(encoding.image_size, LOGITS_STRIDE)
    agreement = torch.full((encoding.present.shape[0], count, rows, columns), float("nan"), device=model.device)
    alone = torch.eye(count, dtype=torch.bool, device=encoding.present.device)

    @functools.cache
    def predict(indices: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = model.fuse_and_decode(encoding, alone[list(indices)].any(0))
        return outputs.logits.float().log_softmax(1), outputs.coverage

    for modality in range(count) if modalities is None else modalities:
        others = encoding.present & ~alone[modality]
        if not bool((encoding.present[:, modality] & others.any(1)).any()):
            continue
        own, covered_by_own = predict((modality,))
        rest, covered_by_rest = predict(tuple(others.any(0).nonzero().flatten().tolist()))
        overlap = (0.5 * (own + rest)).exp().sum(1)
        if tuple(overlap.shape[-2:]) != (rows, columns):  # finer logits: the mean of those of a cell
            parts = LOGITS_STRIDE // logits_stride(overlap, encoding.image_size)
            overlap = torch.nn.functional.avg_pool2d(overlap, parts, ceil_mode=True)
        covered = touched_cells((covered_by_own & covered_by_rest).unsqueeze(1), LOGITS_STRIDE).squeeze(1)
        agreement[:, modality] = torch.where(covered, overlap.clamp(max=1), float("nan"))
    return agreement
