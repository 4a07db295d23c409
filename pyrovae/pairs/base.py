"""What every pair that ships is: a module whose `model` and `guide` are a Pyro pair."""

import itertools
import weakref
from abc import ABC, abstractmethod
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

# The names under which instances stand in Pyro's parameter store. They are kept here and not on the
# instance, so that a copy or a loaded pair cannot take its original's name: `pyro.module` under a
# name already taken trains the old parameters and never the new ones, without a word.
_NAMES: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()
_COUNTER = itertools.count()


class Pair(nn.Module, ABC):
    """A generative model and a guide, `pair.model` and `pair.guide`, methods of one module.

    To write a new one, subclass this and give `model` and `guide`, each calling `self.register()`
    first; `sample` and `reconstruct`; an attribute `likelihood`, the part p(x|z) of the data, and
    `prior`, that of the latent that depends on no other; and `of_names`, which makes it
    of parts named by words, so that `build` and the command line know it. Every instance, copies
    too, registers its parameters with Pyro under names of its own, so any number of them train in
    one process.

    A pair that `takes_labels` has as its context the label of each datum, whole numbers (N,): the
    command line hands it those of its data.
    """

    config: dict[str, Any] | None = None  # what `build` was given
    takes_labels = False
    prior: Any  # modules of any class, with the attributes of `priors.Prior` and its siblings
    likelihood: Any

    @abstractmethod
    def model(self, x: Tensor, *c: Tensor) -> None:
        """Pyro model of data x (N, *data_shape) and context, N rows each."""

    @abstractmethod
    def guide(self, x: Tensor, *c: Tensor) -> None:
        """Pyro guide of the same."""

    @abstractmethod
    def sample(self, n: int, *c: Tensor, seed: int | None = 0, mean: bool = False) -> Tensor:
        """Draw n data from the generative model, (n, *data_shape).

        Args:
            n: how many.
            *c: context, n rows each.
            seed: of the draws; None for the global generator.
            mean: return E[x | z] for the drawn z in place of x, where that is known.
        """

    @abstractmethod
    def reconstruct(self, x: Tensor, *c: Tensor, seed: int | None = 0) -> Tensor:
        """Return E[x' | z] for one z ~ q(z|x) a datum, (N, *data_shape)."""

    @classmethod
    @abstractmethod
    def of_names(cls, parts: Any) -> "Pair":
        """Make one of parts by name; further arguments are `build`'s `pair_options`.

        Args:
            parts: a `names.Parts`, whose `prior`, `likelihood` and `posterior` make those parts.
        """

    @property
    def local(self) -> "Pair":
        """The pair with its global latents fixed at the guide's mean; itself where it has none.

        Figures of a datum, such as log p(x), are of this pair: given the global latents the data
        are independent.
        """
        return self

    def context(self, labels: Tensor, train: bool) -> Tensor:
        """Return the context that labels of data make, where the pair `takes_labels`: all of them.

        Args:
            labels: whole numbers (N,).
            train: are the data to be trained on, or held out?
        """
        return labels

    def register(self) -> None:
        """Hand the parameters to Pyro's store, under names that are this instance's alone.

        The model and the guide do this at each call. Where the store holds other tensors under the
        names (after `load_state_dict(assign=True)`, or a store that was read from disk), the names
        are taken afresh.
        """
        store = pyro.get_param_store()
        trained = {key: p for key, p in self.named_parameters() if p.requires_grad}
        name = _NAMES.get(self)
        if name is None or any(
            full in store and store[full].unconstrained() is not parameter
            for full, parameter in _under(name, trained)
        ):
            name = _NAMES[self] = f"{type(self).__name__}-{next(_COUNTER)}"
        for full, parameter in _under(name, trained):  # as pyro.module, which warns of frozen ones
            pyro.param(full, parameter)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(next(self.parameters(), x))


def check_count(n: int) -> None:
    """Refuse a number of draws that is negative or no whole number."""
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"expected n to be a whole number >= 0; got {n!r}")


def mean_or_draw(x: TorchDistribution) -> Tensor:
    """Return E[x], or a draw where the distribution does not know its mean."""
    try:
        return x.mean
    except NotImplementedError:
        return x.sample()


def _under(name: str, parameters: dict[str, nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    """Return parameters by their names in Pyro's store, under a module of that name."""
    return [(param_with_module_name(name, key), p) for key, p in parameters.items()]
