"""Pixels that depend on one another given z."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional

from pyrovae.distributions import Autoregressive
from pyrovae.likelihoods.base import Likelihood
from pyrovae.nets import NetFactory, Shape, mlp


class Before(nn.Conv2d):
    """A convolution that sees rows up to its own, or in its own row the pixels up to its own.

    A masked convolution, without the zeros: the kernel has only the entries that the mask leaves,
    and the padding puts them there.

    Args:
        before: maps of the input.
        after: maps of the output.
        reach: how many rows up, or pixels to the left, it sees; and to either side, if `rows`.
        rows: does it see whole rows?
        strict: does it leave out its own row, or pixel? The first layer must, or x_i would be told
            to the network that predicts it (mask A of van den Oord et al. (2016); the others, B).
    """

    def __init__(self, before: int, after: int, reach: int, rows: bool, strict: bool) -> None:
        length = reach + (not strict)
        super().__init__(before, after, (length, 2 * reach + 1) if rows else (1, length))
        # (left, right, top, bottom): a padding of -1 cuts the last row or column, which none sees
        self.pad = (reach, reach, reach, -strict) if rows else (reach, -strict, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, after, H, W)."""
        return super().forward(functional.pad(x, self.pad))


class Layer(nn.Module):
    """One layer of both stacks.

    Args:
        before: maps that come in.
        channels: maps that go out.
        reach: half of the kernel's size.
        strict: is it the first, which sees the pixels themselves?
    """

    def __init__(self, before: int, channels: int, reach: int, strict: bool) -> None:
        super().__init__()
        self.vertical = Before(before, 2 * channels, reach, True, strict)
        self.horizontal = Before(before, 2 * channels, reach, False, strict)
        self.condition = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)


class GatedStacks(nn.Module):
    """Logits of each pixel from those before it, by a vertical and a horizontal stack.

    v: the rows above; h: the row itself, to the left, and v. Together they see every pixel before
    the i-th in reach, those up and to the right too, to which one stack of masked convolutions is
    blind. In every layer ("Conditional image generation with PixelCNN decoders", van den Oord et
    al. (2016), fig. 2 and eq. 4)

        a = W_v * v + V s,  v = tanh(a_1) sigmoid(a_2)
        b = W_h * h + U a,  h = h + W_o (tanh(b_1) sigmoid(b_2))

    and after the last of them the logits are maps of h, plus an offset of their own.

    Args:
        num_levels: levels of a pixel.
        channels: maps of v, of h and of s.
        layers: how many; each adds kernel_size // 2 to how far a pixel sees.
        kernel_size: side of the kernels before they are masked, odd.
    """

    layers: Any  # of class Layer

    def __init__(self, num_levels: int, channels: int, layers: int, kernel_size: int) -> None:
        super().__init__()
        self.num_levels, self.channels = num_levels, channels
        self.layers = nn.ModuleList(
            Layer(channels if i else 1, channels, kernel_size // 2, strict=not i)
            for i in range(layers)
        )
        self.logits = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1),
            nn.ReLU(), nn.Conv2d(channels, num_levels, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Return logits (N, num_levels, H, W).

        Args:
            x: images (N, 1, H, W) of levels 0, ..., num_levels - 1.
            s: (N, channels + num_levels, H, W), the features of z, and the logits' offset.
        """
        return self.across(x, self.above(x, s))

    def above(self, x: Tensor, s: Tensor) -> list[Tensor]:
        """Return U a of every layer, (N, 2 channels, H, W), and the offset (N, num_levels, H, W).

        Arguments: see `forward`.
        """
        features, offset = s.split([self.channels, self.num_levels], 1)
        links, v = [], self._scaled(x)
        for layer in self.layers:
            a = layer.vertical(v) + layer.condition(features)
            links.append(layer.link(a))
            v = gated(a)
        return [*links, offset]

    def across(self, x: Tensor, above: list[Tensor]) -> Tensor:
        """Return the logits (N, num_levels, H, W) of rows x (N, 1, H, W), given what is above."""
        *links, offset = above
        h = self._scaled(x)
        for i, (layer, link) in enumerate(zip(self.layers, links, strict=True)):
            change = layer.output(gated(layer.horizontal(h) + link))
            h = h + change if i else change  # carried past the first layer, x_i would tell itself
        return self.logits(h) + offset

    def _scaled(self, x: Tensor) -> Tensor:
        return 2 * x / (self.num_levels - 1) - 1


def gated(a: Tensor) -> Tensor:
    """Return tanh(a_1) sigmoid(a_2) for a = (a_1, a_2), (N, 2 channels, H, W)."""
    first, second = a.chunk(2, 1)
    return first.tanh() * second.sigmoid()


class PixelCNN(Likelihood):
    """p(x|z) = prod_i p(x_i | x_1, ..., x_(i-1), z), x_i in {0, ..., L - 1}, in raster order.

    van den Oord et al. (2016); Gulrajani et al. (2017) put it in a VAE. The logits of a pixel are
    l_i(z) + f_i(x_<i, s(z)): the network gives l, those of independent pixels, and maps s, and
    `GatedStacks` is f. A pixel depends on z and, in reach of the stacks, on the pixels before it;
    the three channels of a colour follow one another. Where the stacks see far, z is left unused:
    a short reach keeps it to what they do not see (Chen et al. (2017)).

    A draw runs the stacks once for each pixel, and E[x|z] is unknown: `VAE.reconstruct` draws.

    Args:
        latent_dim: length of z.
        data_shape: shape of one image, (H, W) or (C, H, W).
        net: factory of the network, or the network, (latent_dim,) -> (channels + L, *data_shape).
        context_dim: numbers of context a datum; 0 for none.
        num_levels: L.
        channels: maps of s and in the stacks.
        layers: of the stacks; a pixel sees layers * (kernel_size // 2) rows up and columns aside.
        kernel_size: side of the kernels before they are masked, odd, at least 3.

    Raises:
        ValueError: a data_shape of no image, or a number out of its range.

    Example:
        >>> likelihood = PixelCNN(latent_dim=2, data_shape=(4, 4), channels=8, layers=2)
        >>> likelihood(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 4, 4])
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Shape,
        net: nn.Module | NetFactory = mlp(),  # noqa: B008
        context_dim: int = 0,
        num_levels: int = 2,
        channels: int = 32,
        layers: int = 4,
        kernel_size: int = 5,
    ) -> None:
        if len(data_shape) not in (2, 3):
            raise ValueError(
                f"PixelCNN takes images: expected data_shape (H, W) or (C, H, W); got "
                f"{tuple(data_shape)}"
            )
        for name, value, least in (
            ("num_levels", num_levels, 2), ("channels", channels, 1), ("layers", layers, 1),
            ("kernel_size", kernel_size, 3),
        ):  # fmt: skip
            if not isinstance(value, int) or value < least:
                raise ValueError(f"expected {name} to be a whole number >= {least}; got {value!r}")
        if kernel_size % 2 == 0:
            raise ValueError(f"expected kernel_size to be odd; got {kernel_size}")
        self.num_levels, self.channels = num_levels, channels  # `param_shape` asks for them
        super().__init__(latent_dim, data_shape, net, context_dim)
        self.pixel_net = GatedStacks(num_levels, channels, layers, kernel_size)

    @property
    def param_shape(self) -> Shape:
        """(channels + num_levels, *data_shape): the maps s, and the logits l."""
        return (self.channels + self.num_levels, *self.event_shape)

    def distribution(self, params: Tensor) -> TorchDistribution:
        """Return the distribution of images whose pixels are told of s and l."""
        return Autoregressive(self.pixel_net, params, len(self.event_shape), self.num_levels)

    def params_of_data(self, x: Tensor) -> Tensor:
        """Return s = 0, and for l the logs of each pixel's frequencies, which f then refines.

        They are mixed with 1/1000 of the uniform: a level that was never seen can be learnt.
        """
        frequencies = torch.stack([(x == k).to(x).mean(0) for k in range(self.num_levels)])
        logits = (0.999 * frequencies + 0.001 / self.num_levels).log()
        return torch.cat([logits.new_zeros(self.channels, *self.event_shape), logits])
