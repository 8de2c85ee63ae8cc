"""The layers of SGMA (arXiv:2603.02505): the way into the encoder, MP, CSF, SP, RP and the decode head.

In the comments: B rows, M modalities, P present (row, modality) pairs, K classes, C channels and N = h * w positions
of a stage, A heads of D channels. Tokens are channels last. Modalities stand before rows, as they are packed for the
encoder, so that nothing is copied to bring those of a row together.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .cells_sgma import STAGE_STRIDES, resize
from .configuration_sgma import SgmaConfig


PROJECTOR_KERNEL_SIZES = (11, 7, 3)
# Added to the scores of what is absent: its softmax weight is exactly 0 beside anything present, and a position
# without any modality stays finite, which -inf would not.
ABSENT_SCORE = -1e9
CONVOLUTION_MAPS = 16  # from here on torch gives 1x1 convolutions to oneDNN, if it has but one thread
CONVOLUTION_PRODUCTS = 2**25  # of numbers; with fewer, preparing a convolution takes much of what it saves
ADAPTER_INIT_RANGE = 1.5  # normalised values are mostly in [-1.5, 1.5]


class SgmaLinear(nn.Linear):
    """A linear map whose initial weights keep the variance of its input, since SGF has no norms.

    On a CPU a large one is a 1x1 convolution of `CONVOLUTION_MAPS` maps, which torch leaves to oneDNN. On processors
    of AMD it takes half the time of a product of matrices, for which MKL uses AVX2 only; on others it is not measured.
    """

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        plain = type(self.weight) is nn.Parameter and tokens.dtype == torch.float32  # not quantised, for instance
        if not plain or tokens.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(tokens)
        rows, left = divmod(tokens.numel() // self.in_features, CONVOLUTION_MAPS)
        if left or tokens.numel() * self.out_features < CONVOLUTION_PRODUCTS:
            return super().forward(tokens)
        maps = tokens.reshape(CONVOLUTION_MAPS, rows, 1, self.in_features).permute(0, 3, 1, 2)
        maps = nn.functional.conv2d(maps, self.weight.view(self.out_features, self.in_features, 1, 1), self.bias)
        return maps.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], self.out_features)


class SgmaIdentityLinear(SgmaLinear):
    """A linear map that starts as the identity."""


class SgmaConv2d(nn.Conv2d):
    """A convolution whose initial weights keep the variance of its input up to a constant."""


class SgmaZeroLinear(SgmaLinear):
    """A linear map that is 0 in a new model."""


class SgmaUpsampling(nn.ConvTranspose2d):
    """Twice the rows and columns of a map; its initial weights keep the variance of its input."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, 2, stride=2, bias=False)


class SgmaDepthwiseKernel(nn.Module):
    """One depthwise kernel, (channels, 1, size, size), which gives itself as the middle of one of a `padded_size`.

    Only a module itself reads its weights: where they are offloaded or sharded, they are there while it is called.
    """

    def __init__(self, channels: int, size: int, padded_size: int):
        super().__init__()
        self.padding = (padded_size - size) // 2
        self.weight = nn.Parameter(torch.empty(channels, 1, size, size))

    def forward(self, added: torch.Tensor | None = None) -> torch.Tensor:
        """A kernel to add, (channels, 1, size, size) -> the sum, (channels, 1, padded_size, padded_size)."""
        kernel = self.weight if added is None else self.weight + added
        return nn.functional.pad(kernel, [self.padding] * 4)


class SgmaDepthwise(SgmaDepthwiseKernel):
    """The largest of the depthwise kernels, which convolves."""

    def __init__(self, channels: int, size: int):
        super().__init__(channels, size, size)

    def forward(self, features: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """Features (pairs, channels, height, width) and a kernel to add (channels, 1, size, size) -> same shape."""
        kernel = self.weight + added
        if self.training and features.device.type == "cpu":  # where it is measured to be faster
            return SgmaDepthwiseConvolution.apply(features, kernel)
        return nn.functional.conv2d(features, kernel, padding=kernel.shape[-1] // 2, groups=kernel.shape[0])


class SgmaAdapterInput(nn.Conv2d):
    """First layer of an adapter; its initial weights and biases put the bends where normalised values lie."""


class SgmaAdapterOutput(nn.Conv2d):
    """Last layer of an adapter; it is 0 in a new model."""


def initialise(module: nn.Module) -> bool:
    """Set the weights of a new leaf of the classes above; False for any other module."""
    if isinstance(module, SgmaIdentityLinear):
        init.eye_(module.weight)
    elif isinstance(module, SgmaZeroLinear):
        init.zeros_(module.weight)
    elif isinstance(module, SgmaLinear):
        init.xavier_uniform_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, SgmaConv2d | SgmaDepthwiseKernel):
        init.kaiming_uniform_(module.weight, a=5**0.5)
    elif isinstance(module, SgmaUpsampling):
        bound = (3 / module.in_channels) ** 0.5
        init.uniform_(module.weight, -bound, bound)
    elif isinstance(module, SgmaAdapterInput):
        bound = ADAPTER_INIT_RANGE * module.in_channels**-0.5
        init.uniform_(module.weight, -bound, bound)
        init.uniform_(module.bias, -ADAPTER_INIT_RANGE, ADAPTER_INIT_RANGE)
    elif isinstance(module, SgmaAdapterOutput):
        init.zeros_(module.weight)
        init.zeros_(module.bias)
    else:
        return False
    return True


def to_tokens(maps: torch.Tensor) -> torch.Tensor:
    """(P, C, h, w) -> (P * N, C)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def to_maps(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B * N, C) -> (B, C, h, w), a view."""
    return tokens.view(-1, *size, tokens.shape[-1]).permute(0, 3, 1, 2)


def at_least_float32(scores: torch.Tensor) -> torch.Tensor:
    """Half precision, under autocast for instance, does for what goes into a softmax, but not for the softmax."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


class SgmaModalityAdapter(nn.Module):
    """A small perceptron of the bands of every pixel (ours; the paper has none).

    An encoder that all modalities share is not told which of them it sees, and their values are distributed
    differently. The adapter, one for each modality, adds what tells it. Its output is 0 in a new model, so that a
    pretrained encoder starts from what it knows.
    """

    def __init__(self, channels: int, encoder_channels: int, size: int):
        super().__init__()
        self.hidden = SgmaAdapterInput(channels, size, 1)
        self.output = SgmaAdapterOutput(size, encoder_channels, 1)

    def forward(self, rasters: torch.Tensor) -> torch.Tensor:
        """(pairs, channels, height, width) -> (pairs, encoder_channels, height, width)."""
        return self.output(nn.functional.gelu(self.hidden(rasters)))


class SgmaModalityStem(nn.Module):
    """Brings one modality's bands to the number that the encoder takes, and adds what its adapter says.

    As many bands as the encoder takes go in as they are and one band is repeated, so that a pretrained first layer
    sees what it knows; any other number is brought there by a 1x1 convolution. An `adapter_size` of 0 is no adapter.
    """

    def __init__(self, channels: int, encoder_channels: int, adapter_size: int):
        super().__init__()
        self.encoder_channels = encoder_channels
        self.projection = self.adapter = None
        if channels not in (1, encoder_channels):
            self.projection = SgmaConv2d(channels, encoder_channels, 1, bias=False)
        if adapter_size:
            self.adapter = SgmaModalityAdapter(channels, encoder_channels, adapter_size)

    def forward(self, rasters: torch.Tensor) -> torch.Tensor:
        """(pairs, channels, height, width) -> (pairs, encoder_channels, height, width)."""
        bands = rasters if self.projection is None else self.projection(rasters)
        bands = bands.expand(-1, self.encoder_channels, -1, -1)
        return bands if self.adapter is None else bands + self.adapter(rasters)


class SgmaDepthwiseConvolution(torch.autograd.Function):
    """A depthwise convolution that keeps the size, and whose gradients are depthwise convolutions as well.

    The gradient of the kernels correlates the features with the gradient of the output: a convolution with the latter
    as kernels, one group for each row and channel. On a CPU that is faster than torch's own, by far where the map is
    small.
    """

    @staticmethod
    def forward(features: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Features (P, C, h, w) and kernels (C, 1, size, size), size odd, -> (P, C, h, w)."""
        return nn.functional.conv2d(features, kernel, padding=kernel.shape[-1] // 2, groups=kernel.shape[0])

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Gradients of the features and the kernels."""
        features, kernel = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)  # another one under autocast
        pairs, channels, *size = features.shape
        of_features = of_kernel = None
        if ctx.needs_input_grad[0]:
            of_features = SgmaDepthwiseConvolution.forward(gradient, kernel.flip(-2, -1))
        if ctx.needs_input_grad[1]:
            groups = pairs * channels
            by_group = features.reshape(1, groups, *size), gradient.reshape(groups, 1, *size)
            of_kernel = nn.functional.conv2d(*by_group, padding=kernel.shape[-1] // 2, groups=groups)
            of_kernel = of_kernel.view(pairs, *kernel.shape).sum(0)
        return of_features, of_kernel


class SgmaTokens(nn.Identity):
    """The features as they are: what is left of MP without its weights, for the baseline `fusion="mean"`."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """One modality's features (pairs, channels, height, width) -> tokens (pairs * positions, channels)."""
        return to_tokens(features)


class SgmaPointwiseProjector(nn.Module):
    """A 1x1 convolution: what is left of MP without its context, for the baseline `fusion="pointwise_mean"`."""

    def __init__(self, channels: int):
        super().__init__()
        self.pointwise = SgmaLinear(channels, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """One modality's features (pairs, channels, height, width) -> tokens (pairs * positions, channels)."""
        return self.pointwise(to_tokens(features))


class SgmaModalityProjector(nn.Module):
    """MP: three depthwise convolutions (11x11, 7x7, 3x3) in parallel, summed, then a 1x1 convolution.

    One for each modality and stage; it carries a modality's features into the common semantic space. No biases and no
    norms: with them left out the parameters add up to the paper's count. The paper does not say how the three
    branches are joined; the count leaves only a sum (a concatenation would need 3 C^2 weights).
    """

    def __init__(self, channels: int):
        super().__init__()
        largest, middle, smallest = PROJECTOR_KERNEL_SIZES
        self.depthwise = nn.ModuleList(
            [
                SgmaDepthwise(channels, largest),
                SgmaDepthwiseKernel(channels, middle, padded_size=largest),
                SgmaDepthwiseKernel(channels, smallest, padded_size=middle),
            ]
        )
        self.pointwise = SgmaLinear(channels, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """One modality's features (pairs, channels, height, width) -> tokens (pairs * positions, channels)."""
        # Nothing stands between the branches and their sum, so one convolution with the summed kernels is the same.
        largest, middle, smallest = self.depthwise
        return self.pointwise(to_tokens(largest(features, middle(smallest()))))


def date_waves(dates: torch.Tensor, periods: Sequence[float]) -> torch.Tensor:
    """Dates (P,) -> sines and cosines of J periods, (P, 2 J); 0 where a date is not known, NaN."""
    lengths = torch.tensor(periods, dtype=dates.dtype).to(dates.device, non_blocking=True)
    # The remainder is exact, so that a date of many periods loses nothing.
    angles = dates.unsqueeze(1).remainder(lengths) * (2 * math.pi / lengths)
    return torch.where(dates.isfinite().unsqueeze(1), torch.cat([angles.sin(), angles.cos()], dim=1), 0)


class SgmaDateModulation(nn.Module):
    """Binds tokens to their date: x + W [gelu(V x + b + U e) - gelu(V x + b)], e the waves of the date (ours).

    One for each modality and stage. What is summed over dates afterwards still says when it was so; a date in the
    keys or added to the tokens would be lost in the sum. An unknown date, whose waves are 0, changes nothing.
    """

    def __init__(self, channels: int, num_periods: int):
        super().__init__()
        self.hidden = SgmaLinear(channels, channels)
        self.date = SgmaLinear(2 * num_periods, channels, bias=False)
        self.output = SgmaZeroLinear(channels, channels, bias=False)

    def forward(self, tokens: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
        """Tokens (P * N, C) of P pairs and the waves of their dates (P, 2 J) -> tokens."""
        hidden = self.hidden(tokens)
        date = self.date(waves.to(tokens.dtype)).unsqueeze(1)  # (P, 1, C)
        dated = (hidden.unflatten(0, (waves.shape[0], -1)) + date).flatten(0, 1)
        return tokens + self.output(nn.functional.gelu(dated) - nn.functional.gelu(hidden))


class SgmaSemanticFilter(nn.Module):
    """CSF: a 1x1 convolution, shared by the modalities, that scores how well a position stands for each class."""

    def __init__(self, channels: int, num_labels: int):
        super().__init__()
        self.classifier = SgmaLinear(channels, num_labels, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., channels) -> (..., num_labels)."""
        return self.classifier(tokens)


def class_prototypes(logits: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Average a row's features into one prototype per class: logits (M, B, N, K), tokens (M, B, N, C) -> (B, K, C).

    The paper sums over modalities and positions; the softmax over both, which makes it an average whatever the size
    of the image and the number of modalities, is ours. `bias` is as in [`SgmaMeanFusion.fuse`].
    """
    modalities, rows, positions, classes = logits.shape
    logits = at_least_float32(logits)
    if bias is not None:
        logits = logits + bias.unsqueeze(-1)
    weights = logits.permute(1, 3, 0, 2).flatten(2).softmax(2).to(tokens.dtype)  # (B, K, M * N), contiguous
    weights = weights.view(rows, classes, modalities, positions).permute(2, 0, 1, 3)
    prototypes = torch.matmul(weights, tokens).sum(0)  # of the pairs, (M, B, K, C) -> (B, K, C)
    if bias is not None:  # a row without anything has the zero vector, not a mean over what is absent
        covered = (bias > ABSENT_SCORE).any(2).any(0)
        prototypes = torch.where(covered[:, None, None], prototypes, 0)
    return prototypes


class SgmaPerceptron(nn.Module):
    """The four projections of multi-head attention, without biases.

    Values and output start as the identity (ours), so that a new model averages what its projectors make, each
    modality weighted by its robustness; from random maps SGF learns more slowly than from that mean.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = SgmaLinear(channels, channels, bias=False)
        self.key = SgmaLinear(channels, channels, bias=False)
        self.value = SgmaIdentityLinear(channels, channels, bias=False)
        self.output = SgmaIdentityLinear(channels, channels, bias=False)


class SgmaSpatialPerceptron(SgmaPerceptron):
    """SP: multi-head attention at every position, from the class prototypes to the modalities there.

    Its mean over the classes, the semantic reference feature, is all that is used of its output. Values and output
    projection are linear, so the attention weights can be averaged over the classes first, and no tensor of
    positions x classes x channels is needed. Likewise the keys are never built: their projection is applied to the
    few queries instead of the many positions. Both are exact.
    """

    def unit_keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keys of the unit vectors, (C, C): the matrix of `key`, or of a quantised or adapted layer in its place."""
        return self.key(torch.eye(tokens.shape[-1], dtype=tokens.dtype, device=tokens.device))

    def forward(
        self,
        prototypes: torch.Tensor,
        tokens: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Prototypes (B, K, C), tokens and their `value` (M, B, N, C), `unit_keys`, bias -> reference (B * N, C)."""
        modalities, rows, positions, channels = tokens.shape
        heads, head_dim = self.num_heads, channels // self.num_heads
        query = self.query(prototypes.flatten(0, 1)) * head_dim**-0.5  # (B * K, C)
        keys = keys.view(channels, heads, head_dim).permute(1, 0, 2)
        query = torch.bmm(keys, query.view(-1, heads, head_dim).permute(1, 2, 0))  # (A, C, B * K)
        query = query.view(heads, channels, rows, -1).permute(2, 1, 0, 3)  # (B, C, A, K)
        query = query.expand(modalities, -1, -1, -1, -1).reshape(modalities * rows, channels, -1)
        scores = torch.bmm(tokens.flatten(0, 1), query)  # (M * B, N, A * K)
        scores = at_least_float32(scores.view(modalities, rows, positions, heads, -1))
        if bias is not None:
            scores = scores + bias[..., None, None]
        return self.output(weighted_sum(scores.softmax(0).mean(-1), values))


class SgmaRobustnessPerceptron(SgmaPerceptron):
    """RP: multi-head attention at every position, from the semantic reference feature to the modalities there.

    Its weights are the robustness maps, its output the fused map.
    """

    def forward(
        self, reference: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reference (B * N, C), `key` and `value` of tokens (M, B, N, C), bias of the scores -> fused and robustness.

        The fused tokens are (B * N, C), the robustness is float32 at least, in [0, 1], (M, B, N).
        """
        heads, head_dim = self.num_heads, keys.shape[-1] // self.num_heads
        query = self.query(reference).view(*keys.shape[1:3], heads, head_dim)
        # A product of matrices would be tiny, D x 1 at every position and head, and slow in the backward pass.
        scores = (query * keys.unflatten(3, (heads, head_dim))).sum(-1) * head_dim**-0.5  # (M, B, N, A)
        scores = at_least_float32(scores)
        if bias is not None:
            scores = scores + bias.unsqueeze(-1)
        weights = scores.softmax(0)
        if bias is not None:  # where nothing covers, the softmax is uniform over absent modalities
            weights = weights * (bias > ABSENT_SCORE).unsqueeze(-1)
        return self.output(weighted_sum(weights, values)), weights.mean(-1)


def weighted_sum(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum values (M, B, N, A * D) over the modalities with weights per head, (M, B, N, A) -> (B * N, A * D)."""
    heads, channels = weights.shape[3], values.shape[3]
    values = values.unflatten(3, (heads, channels // heads))
    return (weights.to(values.dtype).unsqueeze(-1) * values).sum(0).view(-1, channels)


def restride_single(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    """Give a batch of one its usual strides before a convolution: a hook that is worth a third of its inference.

    A view of tokens as (1, C, h, w) has the stride C in the batch axis, by which torch does not know it as channels
    last; it copies the map to another layout, which takes far longer than a depthwise convolution itself.
    """
    maps = inputs[0]
    if module.training or torch.compiler.is_compiling() or maps.shape[0] != 1 or maps.stride(1) != 1:
        return None
    _, channels, height, width = maps.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return (maps.as_strided(maps.shape, strides),) if maps.stride()[2:] == strides[2:] else None


class SgmaDecodeHead(nn.Module):
    """All-MLP head: the four stages, brought to one width, are upsampled, summed and classified.

    The paper does not name its head; this is SegFormer's (arXiv:2105.15203), whose two consecutive linear maps are
    one here, applied before the upsampling (both commute with it), and whose batch normalisation is a layer
    normalisation at every position: no pixel's class depends on the other rows of a batch or on the size of the tile.

    Logits finer than the first stage (ours) are those of its cells, upsampled, and what the cell says of each of its
    parts beside that, 0 in a new model: so a trained model can be given finer logits and starts as it was.
    """

    def __init__(self, config: SgmaConfig, channels: list[int]):
        super().__init__()
        width = config.decoder_hidden_size
        self.linears = nn.ModuleList(SgmaLinear(stage_channels, width) for stage_channels in channels)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        # Not transformers' usual weights of 0.02: with them, training stalls at the classes' shares for long.
        self.classifier = SgmaLinear(width, config.num_labels)
        self.parts_per_side = STAGE_STRIDES[0] // config.logits_stride
        self.part_classifier = None
        if self.parts_per_side > 1:
            self.part_classifier = SgmaZeroLinear(width, config.num_labels * self.parts_per_side**2, bias=False)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Fused maps of the four stages -> logits (batch_size, num_labels, height / stride, width / stride)."""
        size = feature_maps[0].shape[-2:]
        hidden = None
        for linear, maps in zip(self.linears, feature_maps, strict=True):
            maps = linear(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, width, h, w)
            hidden = maps if hidden is None else hidden + resize(maps, size)
        hidden = self.dropout(nn.functional.relu(self.norm(hidden.permute(0, 2, 3, 1))))  # (B, h, w, width)
        logits = self.classifier(hidden).permute(0, 3, 1, 2)
        if self.part_classifier is None:
            return logits
        parts = nn.functional.pixel_shuffle(self.part_classifier(hidden).permute(0, 3, 1, 2), self.parts_per_side)
        return parts + resize(logits, parts.shape[-2:])
