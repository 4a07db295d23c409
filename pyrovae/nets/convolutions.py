"""Convolutions: a datum as an image, whichever side of the network it stands on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pyrovae.nets.base import Net, NetFactory, Shape, Shift
from pyrovae.nets.choices import activation_class, check_hidden, check_weight_init, initialise

SMALLEST = 4  # sides of an image that is found without data_shape: (2, latent_dim) is none


@dataclass(frozen=True)
class Image:
    """Where an image stands in a shape (*lead, H, W, *trail); the rest of the shape is channels."""

    lead: Shape
    size: tuple[int, int]
    trail: Shape

    @property
    def channels(self) -> int:
        """How many maps the image has."""
        return math.prod(self.lead) * math.prod(self.trail)

    def to_maps(self, x: Tensor) -> Tensor:
        """Map (N, *lead, H, W, *trail) to (N, channels, H, W)."""
        split = x.reshape(len(x), math.prod(self.lead), *self.size, math.prod(self.trail))
        return split.permute(0, 1, 4, 2, 3).reshape(len(x), self.channels, *self.size)

    def from_maps(self, maps: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, *lead, H, W, *trail)."""
        n = len(maps)
        split = maps.reshape(n, math.prod(self.lead), math.prod(self.trail), *self.size)
        return split.permute(0, 1, 3, 4, 2).reshape(n, *self.lead, *self.size, *self.trail)

    def halved(self, times: int) -> list[tuple[int, int]]:
        """Return the sizes of the image halved 0, ..., `times` times, rounded up."""
        sizes = [self.size]
        for _ in range(times):
            h, w = sizes[-1]
            sizes.append(((h + 1) // 2, (w + 1) // 2))
        return sizes


def find_image(shape: Shape, data_shape: Shape | None) -> Image | None:
    """Return where the image stands in a shape, or None if it does not.

    Args:
        shape: shape of a network's input or output.
        data_shape: (H, W) or (C, H, W), looked for from the right; None for the last two entries
            of the shape, if neither is smaller than `SMALLEST`.
    """
    if data_shape is None:
        large = len(shape) >= 2 and min(shape[-2:]) >= SMALLEST
        return Image(shape[:-2], (shape[-2], shape[-1]), ()) if large else None
    n = len(data_shape)
    for i in range(len(shape) - n, -1, -1):
        if shape[i : i + n] == data_shape:
            h = i + n - 2
            return Image(shape[:h], (shape[h], shape[h + 1]), shape[h + 2 :])
    return None


class Residual(nn.Module):
    """h + W2 * a(W1 * a(h)): a residual block, activated before its maps, without normalisation.

    Args:
        channels: maps of h.
        activation: a, the nonlinearity's class.
        kernel_size: side of both kernels.
    """

    def __init__(self, channels: int, activation: type[nn.Module], kernel_size: int) -> None:
        super().__init__()
        same = partial(nn.Conv2d, channels, channels, kernel_size, padding=kernel_size // 2)
        self.residual = nn.Sequential(activation(), same(), activation(), same())

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        return h + self.residual(h)


class Encoder(Net):
    """From an image: a convolution of stride 2 for each of `hidden`, then a linear map.

    Args:
        in_shape: shape of one input.
        out_shape: shape of one output.
        image: where the image stands in `in_shape`.
        hidden: maps after each convolution.
        blocks: residual blocks after each convolution.
        activation: the nonlinearity's class.
        kernel_size: side of each kernel, odd.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        image: Image,
        hidden: Shape,
        blocks: int,
        activation: type[nn.Module],
        kernel_size: int,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.image = image
        self.hidden = nn.Sequential()
        for before, after in pairwise([image.channels, *hidden]):
            self.hidden.append(nn.Conv2d(before, after, kernel_size, 2, kernel_size // 2))
            self.hidden.extend([Residual(after, activation, kernel_size) for _ in range(blocks)])
            self.hidden.append(activation())
        smallest = image.halved(len(hidden))[-1]
        self.output = nn.Linear(hidden[-1] * math.prod(smallest), math.prod(out_shape))

    def rows(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, prod(out_shape))."""
        return self.output(self.hidden(self.image.to_maps(x)).flatten(1))


class Decoder(Net):
    """To an image: a linear map, then upsampling and a convolution for each of `hidden`.

    It is `Encoder` backwards, through the same sizes. Arguments: see `Encoder`.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        image: Image,
        hidden: Shape,
        blocks: int,
        activation: type[nn.Module],
        kernel_size: int,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.image = image
        *sizes, smallest = image.halved(len(hidden))
        self.smallest = (hidden[0], *smallest)
        self.input = nn.Linear(math.prod(in_shape), math.prod(self.smallest))
        self.hidden = nn.Sequential()
        maps = [*hidden, image.channels]
        for i, size in enumerate(reversed(sizes)):
            self.hidden.extend([Residual(maps[i], activation, kernel_size) for _ in range(blocks)])
            self.hidden.extend([activation(), nn.Upsample(size)])
            bias = i + 1 < len(sizes)  # that of the last maps would be part of the shift
            self.hidden.append(
                nn.Conv2d(maps[i], maps[i + 1], kernel_size, padding=kernel_size // 2, bias=bias)
            )
        self.output = Shift(out_shape)

    def rows(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, *out_shape)."""
        smallest = self.input(x.flatten(1)).reshape(len(x), *self.smallest)
        return self.output(self.image.from_maps(self.hidden(smallest)))


def _connect(
    in_shape: Shape,
    out_shape: Shape,
    name: str,
    data_shape: Shape | None,
    weight_init: str,
    **layers: Any,
) -> Net:
    """Return the encoder, or the decoder, that the image's side asks for."""
    source, target = (find_image(tuple(shape), data_shape) for shape in (in_shape, out_shape))
    if data_shape is None and source and target:
        areas = math.prod(source.size), math.prod(target.size)
        if areas[0] != areas[1]:
            source, target = (source, None) if areas[0] > areas[1] else (None, target)
    net: Net
    if source and not target:
        net = Encoder(in_shape, out_shape, source, **layers)
    elif target and not source:
        net = Decoder(in_shape, out_shape, target, **layers)
    else:
        raise ValueError(
            f"{name} takes images: expected {data_shape or '(..., H, W)'} in one of the network's "
            f"input and output; got {tuple(in_shape)} -> {tuple(out_shape)}, with an image in "
            f"{'both' if source else 'neither'}: give data_shape=(H, W) or (C, H, W), or take "
            "nets.mlp for tables and for an input with context"
        )
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            initialise(layer, weight_init)
    return net


def _factory(
    name: str,
    hidden: Sequence[int],
    data_shape: Sequence[int] | None,
    activation: str,
    kernel_size: int,
    weight_init: str,
    blocks: int,
) -> NetFactory:
    if data_shape is not None and len(data_shape) not in (2, 3):
        raise ValueError(
            f"{name} takes images: expected data_shape (H, W) or (C, H, W); got "
            f"{tuple(data_shape)}: take nets.mlp, residual_mlp or deep_set for tables"
        )
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"expected kernel_size to be an odd whole number; got {kernel_size!r}")
    if not isinstance(blocks, int) or blocks < 0:
        raise ValueError(f"expected blocks to be a whole number >= 0; got {blocks!r}")
    return partial(
        _connect,
        name=name,
        data_shape=None if data_shape is None else tuple(data_shape),
        weight_init=check_weight_init(weight_init),
        hidden=check_hidden(hidden, at_least=1),
        blocks=blocks,
        activation=activation_class(activation),
        kernel_size=kernel_size,
    )


def conv(
    hidden: Sequence[int] = (32, 64),
    data_shape: Sequence[int] | None = None,
    activation: str = "relu",
    kernel_size: int = 3,
    weight_init: str = "torch",
) -> NetFactory:
    """Return a factory of convolutional nets: h = activation(W * h + b), halving H and W each time.

    LeCun et al. (1998). With the image in the input, convolutions of stride 2, then a linear map.
    With the image in the output, a linear map, then upsampling through the same sizes, each
    followed by a convolution (Odena et al. (2016): no checkerboards), and one bias an entry.
    What stands before and after the image in a shape, as in (2, H, W) or (H, W, 256), is channels.

    Args:
        hidden: maps at each size, of which there are as many as entries; in the net's order, so
            those of a decoder are the encoder's reversed.
        data_shape: shape of the image, (H, W) or (C, H, W); None for the last two entries of the
            input or the output, whichever are larger, and at least 4 x 4.
        activation: a key of `ACTIVATIONS`.
        kernel_size: side of each kernel, odd.
        weight_init: "torch" (its default), or a key of `WEIGHT_INITS`, with zero biases.

    Raises:
        ValueError: an unknown name or a number out of its range; when the net is made, no image in
            exactly one of input and output.

    Example:
        >>> import torch
        >>> net = conv(hidden=(8, 16), data_shape=(28, 28))((28, 28), (2, 3))
        >>> net(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 2, 3])
        >>> net = conv(hidden=(16, 8), data_shape=(28, 28))((3,), (28, 28))
        >>> net(torch.zeros(5, 3)).shape
        torch.Size([5, 28, 28])
    """
    return _factory("conv", hidden, data_shape, activation, kernel_size, weight_init, blocks=0)


def residual_conv(
    hidden: Sequence[int] = (32, 64),
    data_shape: Sequence[int] | None = None,
    activation: str = "relu",
    kernel_size: int = 3,
    weight_init: str = "torch",
    blocks: int = 1,
) -> NetFactory:
    """Return a factory of residual convolutional nets: h = h + W2 * a(W1 * a(h)), at each size.

    He et al. (2016), activated before the maps; without batch normalisation, under which rows would
    depend on one another. Between the sizes it is `conv`.

    Args:
        hidden: maps at each size; see `conv`.
        data_shape: shape of the image; see `conv`.
        activation: a, a key of `ACTIVATIONS`.
        kernel_size: side of each kernel, odd.
        weight_init: "torch" (its default), or a key of `WEIGHT_INITS`, with zero biases.
        blocks: residual blocks at each size.

    Raises:
        ValueError: as `conv` does.
    """
    return _factory(
        "residual_conv", hidden, data_shape, activation, kernel_size, weight_init, blocks
    )
