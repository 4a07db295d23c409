"""Nets for tables: a datum as a row of columns, or as a set of elements."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.nets.base import Net, NetFactory, Shape, Shift
from pyrovae.nets.choices import activation_class, check_hidden, check_weight_init, initialise


class Block(nn.Module):
    """h + W2 a(W1 LayerNorm(h) + b1) + b2: a residual block of one width.

    Args:
        width: length of h.
        activation: a, the nonlinearity's class.
    """

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), activation(), nn.Linear(width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, width) to the same shape."""
        return h + self.residual(h)


class ResidualMLP(Net):
    """A linear map, residual blocks, and W a(LayerNorm(h)) + b.

    Args:
        in_shape: shape of one input; flattened inside.
        out_shape: shape of one output.
        hidden: the width, once for each block.
        activation: the nonlinearity's class.
        weight_init: a key of `WEIGHT_INITS`, or "torch".
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Shape,
        activation: type[nn.Module],
        weight_init: str,
    ) -> None:
        super().__init__(in_shape, out_shape)
        width = hidden[0]
        self.input = nn.Linear(math.prod(in_shape), width)
        self.hidden = nn.Sequential(*(Block(width, activation) for _ in hidden))
        self.hidden.extend([nn.LayerNorm(width), activation()])
        self.output = nn.Linear(width, math.prod(out_shape))
        _initialise_all(self, weight_init)

    def rows(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, prod(out_shape))."""
        return self.output(self.hidden(self.input(x.flatten(1))))


class SetEncoder(Net):
    """f(x) = rho(sum_m b_m phi(x_m, e_m) / M), b_m = 0 for an element that is not observed.

    Without the embeddings e_m a permutation of the elements changes nothing.

    Args:
        in_shape: (*lead, M, *features), lead empty, or (2,) for values and their mask.
        out_shape: shape of one output.
        lead: how many dimensions stand before the elements'.
        embedding_dim: length of e_m, learnt, which tells column m from the others; 0 for none.
        hidden: widths of phi; the last is that of rho's layer too.
        activation: the nonlinearity's class.
        weight_init: a key of `WEIGHT_INITS`, or "torch".
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        lead: int,
        embedding_dim: int,
        hidden: Shape,
        activation: type[nn.Module],
        weight_init: str,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.lead, self.elements = lead, in_shape[lead]
        self.numbers = math.prod(in_shape) // self.elements  # of one element, masks included
        self.embedding = (
            nn.Parameter(torch.randn(self.elements, embedding_dim)) if embedding_dim else None
        )
        self.phi = _layers([self.numbers + embedding_dim, *hidden], activation)
        self.rho = _layers([hidden[-1], hidden[-1]], activation)
        self.output = nn.Linear(hidden[-1], math.prod(out_shape))
        _initialise_all(self, weight_init)

    def rows(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, prod(out_shape)); where the mask is 0, x has no influence."""
        n, seen = len(x), None
        if self.lead:
            values, mask = x.unbind(1)
            x = torch.stack([values * mask, mask], 1)
            seen = (mask != 0).reshape(n, self.elements, self.numbers // 2).any(-1, keepdim=True)
        elements = x.movedim(1 + self.lead, 1).reshape(n, self.elements, self.numbers)
        if self.embedding is not None:
            elements = torch.cat([elements, self.embedding.expand(n, -1, -1)], -1)
        h = self.phi(elements)
        if seen is not None:
            h = h * seen.to(h.dtype)
        return self.output(self.rho(h.mean(1)))


class SetDecoder(Net):
    """f(z)_m = psi(z, e_m): one network for all elements m, told apart by learnt e_m.

    Args:
        in_shape: shape of one input; flattened inside.
        out_shape: (*lead, M, *rest).
        lead: how many dimensions stand before the elements'.
        embedding_dim: length of e_m.
        hidden: widths of psi.
        activation: the nonlinearity's class.
        weight_init: a key of `WEIGHT_INITS`, or "torch".
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        lead: int,
        embedding_dim: int,
        hidden: Shape,
        activation: type[nn.Module],
        weight_init: str,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.lead = lead
        elements = out_shape[lead]
        self.embedding = nn.Parameter(torch.randn(elements, embedding_dim))
        self.psi = _layers([math.prod(in_shape) + embedding_dim, *hidden], activation)
        numbers = math.prod(out_shape) // elements
        self.psi.append(nn.Linear(hidden[-1], numbers, bias=False))  # the shift has one an entry
        self.output = Shift(out_shape)
        _initialise_all(self, weight_init)

    def rows(self, x: Tensor) -> Tensor:
        """Map (N, *in_shape) to (N, *out_shape)."""
        z, e = x.flatten(1), self.embedding
        pairs = torch.cat([z.unsqueeze(1).expand(-1, len(e), -1), e.expand(len(x), -1, -1)], -1)
        values = self.psi(pairs)  # (N, M, numbers of *lead and *rest)
        lead, (_, *rest) = self.out_shape[: self.lead], self.out_shape[self.lead :]
        split = values.reshape(*values.shape[:2], *lead, *rest)
        return self.output(split.movedim(1, 1 + self.lead))


def _layers(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Return linear maps from width to width, each with its activation."""
    layers = nn.Sequential()
    for before, after in pairwise(widths):
        layers.extend([nn.Linear(before, after), activation()])
    return layers


def _initialise_all(net: nn.Module, weight_init: str) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            initialise(layer, weight_init)


def residual_mlp(
    hidden: Sequence[int] = (128, 128), activation: str = "relu", weight_init: str = "torch"
) -> NetFactory:
    """Return a factory of residual perceptrons: h = h + W2 a(W1 LayerNorm(h) + b1) + b2.

    Gorishniy et al. (2021), the ResNet for tables, with layer in place of batch normalisation,
    under which rows would depend on one another, and no dropout.

    Args:
        hidden: the width, once for each block.
        activation: a, a key of `ACTIVATIONS`.
        weight_init: "torch" (its default), or a key of `WEIGHT_INITS`, with zero biases.

    Raises:
        ValueError: an unknown name, or widths that are not one positive whole number.

    Example:
        >>> import torch
        >>> residual_mlp(hidden=(8, 8))((4,), (2, 3))(torch.zeros(5, 4)).shape
        torch.Size([5, 2, 3])
    """
    if len(set(hidden)) > 1:
        raise ValueError(
            "expected hidden of residual_mlp to be one width, once for each block, as (128, 128); "
            f"got {tuple(hidden)}"
        )
    return partial(
        ResidualMLP,
        hidden=check_hidden(hidden, at_least=1),
        activation=activation_class(activation),
        weight_init=check_weight_init(weight_init),
    )


def _set_net(
    in_shape: Shape,
    out_shape: Shape,
    data_shape: Shape,
    embedding_dim: int,
    **layers: Any,
) -> Net:
    """Return the encoder, or the decoder, that the set's side asks for."""
    if in_shape in {data_shape, (2, *data_shape)}:
        lead = len(in_shape) - len(data_shape)
        embedded = embedding_dim if len(data_shape) == 1 else 0
        return SetEncoder(in_shape, out_shape, lead, embedded, **layers)
    n = len(data_shape)
    for lead in range(len(out_shape) - n, -1, -1):
        if out_shape[lead : lead + n] == data_shape:
            return SetDecoder(in_shape, out_shape, lead, embedding_dim, **layers)
    raise ValueError(
        f"deep_set expected data of shape {data_shape} as the network's input, alone or with its "
        f"mask as {(2, *data_shape)}, or in its output; got {in_shape} -> {out_shape}: take "
        "nets.mlp for an input with context"
    )


def deep_set(
    hidden: Sequence[int] = (64, 64),
    data_shape: Sequence[int] | None = None,
    activation: str = "relu",
    embedding_dim: int = 16,
    weight_init: str = "torch",
) -> NetFactory:
    """Return a factory of deep sets: f(x) = rho(sum_m b_m phi(x_m, e_m) / M).

    Zaheer et al. (2017); for partially observed rows Ma et al. (2019). Data of shape (D,) are D
    elements of one number, told apart by learnt embeddings e_m. Data of shape (M, F) are M elements
    of F numbers, and have none: their order does not matter. With a mask (a posterior's
    `missing=True`) b_m is 0 for an element none of whose numbers is observed. A decoder is
    f(z)_m = psi(z, e_m), with embeddings for either. Where input and output could both be the data
    (z as long as a row), the input is taken to be.

    Args:
        hidden: widths of phi, or psi; the last is that of rho's one layer too.
        data_shape: (D,) or (M, F), without which elements cannot be told from the numbers of z.
        activation: a key of `ACTIVATIONS`.
        embedding_dim: length of e_m.
        weight_init: "torch" (its default), or a key of `WEIGHT_INITS`, with zero biases.

    Raises:
        ValueError: an unknown name or a number out of its range; when the net is made, the data in
            neither input nor output.

    Example:
        >>> import torch
        >>> net = deep_set(hidden=(8,), data_shape=(6, 3))((6, 3), (2, 4))
        >>> x = torch.randn(5, 6, 3)
        >>> torch.allclose(net(x), net(x.flip(1)), atol=1e-6)
        True
    """
    if data_shape is None or len(data_shape) not in (1, 2):
        raise ValueError(
            "deep_set takes tables and sets: expected data_shape (D,) or (M, F); got "
            f"{data_shape if data_shape is None else tuple(data_shape)}"
        )
    if not isinstance(embedding_dim, int) or embedding_dim < 1:
        raise ValueError(
            f"expected embedding_dim to be a positive whole number; got {embedding_dim!r}"
        )
    return partial(
        _set_net,
        data_shape=tuple(data_shape),
        embedding_dim=embedding_dim,
        hidden=check_hidden(hidden, at_least=1),
        activation=activation_class(activation),
        weight_init=check_weight_init(weight_init),
    )
