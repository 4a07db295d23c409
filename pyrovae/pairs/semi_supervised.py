"""The semi-supervised VAE: a label beside z, known of some data and latent in the others."""

import math
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from pyrovae import posteriors
from pyrovae.distributions import OneHotGroups, seeded
from pyrovae.nets import evaluating
from pyrovae.nets.naming import by_name
from pyrovae.pairs.base import Pair, check_count, mean_or_draw
from pyrovae.pairs.summing import summed
from pyrovae.priors import OneHotCategorical

UNKNOWN = -1  # in place of a label

# q(y|x) by name: what can be summed over or drawn, and what is drawn with a gradient.
CLASSIFIERS: dict[str, Any] = {
    c.__name__: c for c in (posteriors.OneHotCategorical, posteriors.StraightThrough)
}


class SemiSupervisedVAE(Pair):
    """p(x, y, z) = p(y) p(z) p(x|y, z) with the guide q(y|x) q(z|x, y), y known of some data.

        model(x, c):  y ~ class_prior(),  z ~ prior(),         x ~ likelihood(z, y)
        guide(x, c):  y ~ classifier(x),  z ~ posterior(x, y)          within the plate "data"

    Kingma, Mohamed, Rezende & Welling (2014), the model M2. y is one-hot; the context c holds
    labels, whole numbers (N,), with -1 for what is unknown; without c none is known. Where the
    label is known, both sides put all mass of y on it, and p(y = c) is the observed site "label":
    the bound of such a datum is that of log p(x, y), eq. 6, and of the others that of log p(x),
    eq. 7, as is all other evidence.

    `TraceEnum_ELBO` sums over y, by one pass of the networks for each class. `Trace_ELBO` and the
    others draw it, with score-function gradients, or straight-through ones by that classifier,
    which is always drawn. The ELBO is the same.

    Labels would not teach the classifier, so in training mode there is a further observed site,
    "classification": alpha log q(y|x) where y is known, eq. 9. `fit` trains in that mode; what is
    measured, evidence and validation too, is in evaluation mode, and without the site.

    Args:
        prior: p(z), which takes no context.
        likelihood: p(x|y, z), of `context_dim` the number of classes.
        posterior: q(z|x, y), of `context_dim` the number of classes.
        classifier: q(y|x), one-hot: a `posteriors.OneHotCategorical` or `StraightThrough` of
            latent_dim the number of classes.
        class_prior: p(y), one-hot; None for equally likely classes.
        alpha: weight of the classification of a datum whose label is known.
        labelled: how many labels of the training data `context` keeps; None for all.
        seed: of which these are.

    Raises:
        ValueError: parts of another number of classes, that disagree on latent_dim, data_shape,
            where z lives or missing entries, or numbers out of their range; when called, labels
            that are no whole numbers from -1 to that of the last class.

    Example:
        >>> from pyrovae import build
        >>> vae = build(data_shape=(8, 8), latent_dim=2, pair="semi-supervised-vae")
        >>> vae.classify(torch.ones(3, 8, 8)).shape
        torch.Size([3, 10])
        >>> from pyro.infer import TraceEnum_ELBO
        >>> x, c = torch.ones(3, 8, 8), torch.tensor([7, -1, -1])
        >>> loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x, c)
    """

    takes_labels = True
    posterior: Any  # modules of any class, with the attributes of `posteriors.Posterior`
    classifier: Any
    class_prior: Any

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        classifier: nn.Module,
        class_prior: nn.Module | None = None,
        alpha: float = 0.1,
        labelled: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        known: Any = classifier
        self.num_classes: int = known.latent_dim
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior
        self.classifier = classifier
        self.class_prior = class_prior or OneHotCategorical(self.num_classes)
        self._check_parts()
        if not 0 <= alpha < math.inf:
            raise ValueError(f"expected alpha to be finite and >= 0; got {alpha!r}")
        if labelled is not None and (not isinstance(labelled, int) or labelled < 1):
            raise ValueError(f"expected labelled to be a positive whole number; got {labelled!r}")
        self.alpha, self.labelled, self.seed = alpha, labelled, seed

    def _check_parts(self) -> None:
        observed = getattr(self.likelihood, "likelihood", self.likelihood)  # inside a masked one
        for name, part in (("likelihood", observed), ("posterior", self.posterior)):
            dim = getattr(part, "context_dim", 0)
            if dim != self.num_classes:
                raise ValueError(
                    f"expected a {name} of context_dim {self.num_classes}, the classifier's number "
                    f"of classes; got {type(part).__name__} with {dim}"
                )
        if getattr(self.prior, "context_dim", 0) or getattr(self.prior, "indexed", False):
            raise ValueError(
                f"expected a prior p(z) that takes no context; got {type(self.prior).__name__}: "
                "here y and z are independent"
            )
        if self.classifier.space != self.class_prior.space:
            raise ValueError(
                "expected a classifier and a class_prior of the same one-hot labels; got "
                f"{self.classifier.space!r} and {self.class_prior.space!r}"
            )
        for attribute, names in (
            ("latent_dim", ("prior", "likelihood", "posterior")),
            ("space", ("prior", "posterior")),
            ("data_shape", ("likelihood", "posterior", "classifier")),
        ):
            parts = {name: getattr(self, name) for name in names}
            values = {n: getattr(p, attribute) for n, p in parts.items() if hasattr(p, attribute)}
            if len(set(values.values())) > 1:
                raise ValueError(f"expected parts of one {attribute}; got {values}")
        for part in (self.posterior, self.classifier):
            if getattr(self.likelihood, "missing", False) and not getattr(part, "missing", True):
                raise ValueError(
                    "expected a posterior and a classifier that take missing entries, as the "
                    f"likelihood does; got {type(part).__name__}: build it with missing=True"
                )

    @classmethod
    def of_names(
        cls,
        parts: Any,
        num_classes: int = 10,
        labelled: int | None = None,
        alpha: float = 0.1,
        num_data: int | None = None,
        classifier: str = "one-hot-categorical",
    ) -> "SemiSupervisedVAE":
        """Make one of parts by name.

        Args:
            parts: see `Pair.of_names`.
            num_classes: how many labels 0, 1, ... there are.
            labelled: how many labels of the training data are kept, as many of each class, the
                others being hidden; None for all.
            alpha: weight of the classification; a datum whose label is known has num_data /
                labelled times it, so that it does not matter how many these are (eq. 9).
            num_data: how many training data there are; the command line says so itself.
            classifier: q(y|x), "one-hot-categorical" or "straight-through".

        Raises:
            ValueError: an unknown classifier, or numbers out of their range.
        """
        make = by_name("classifier", classifier, CLASSIFIERS)
        if num_classes < 2:
            raise ValueError(f"expected num_classes to be a whole number >= 2; got {num_classes}")
        seed = int(torch.randint(2**31, ()))  # first: the same labels whatever the parts
        posterior = parts.posterior(context_dim=num_classes)
        prior = parts.prior(posterior=posterior)
        likelihood = parts.likelihood(context_dim=num_classes)
        q_y = make(
            parts.data_shape, num_classes, parts.encoder,
            input_scale=getattr(posterior, "input_scale", 1.0),
            missing=getattr(posterior, "missing", False),
        )  # fmt: skip
        own = 1.0 if labelled is None or num_data is None else num_data / max(1, labelled)
        return cls(
            prior, likelihood, posterior, q_y, alpha=alpha * own, labelled=labelled, seed=seed
        )

    def context(self, labels: Tensor, train: bool) -> Tensor:
        """Return what is known of labels (N,), -1 for what is not.

        Of training data, `labelled` of them, as many of each class as of the others, or one more;
        of data held out, none: their evidence is log p(x).

        Args:
            labels: of all data, whole numbers from 0 to num_classes - 1.
            train: are the data to be trained on?

        Raises:
            ValueError: labels out of their range, or too few of a class.
        """
        labels = self._labels(len(labels), (labels,))
        if not train:
            return torch.full_like(labels, UNKNOWN)
        if self.labelled is None:
            return labels
        return keep_balanced(labels, self.labelled, self.num_classes, self.seed)

    def model(self, x: Tensor, *c: Tensor) -> None:
        """Pyro model p(y) p(z) p(x|y, z), sites "label", "y", "z" and "x".

        Args:
            x: data (N, *data_shape).
            *c: labels (N,), -1 where unknown; or nothing where all are.
        """
        self.register()
        labels = self._labels(len(x), c)
        seen = labels != UNKNOWN
        with pyro.plate("data", len(x)):
            p_y = self.class_prior()
            hot = self._one_hot(labels).to(p_y.logits)
            with poutine.mask(mask=seen):
                pyro.sample("label", p_y, obs=hot)
            y = pyro.sample("y", self._settled(p_y, labels))
            z = pyro.sample("z", self.prior())
            pyro.sample("x", _given(self.likelihood, z, 1, y), obs=x)
            if self.training and self.alpha:
                with poutine.mask(mask=seen), poutine.scale(scale=self.alpha):
                    pyro.sample("classification", self.classifier(x), obs=hot)

    def guide(self, x: Tensor, *c: Tensor) -> None:
        """Pyro guide q(y|x) q(z|x, y), sites "y" and "z".

        Args:
            x: data (N, *data_shape).
            *c: labels (N,), -1 where unknown; or nothing where all are.
        """
        self.register()
        q_y = self._settled(self.classifier(x), self._labels(len(x), c))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", q_y, infer=summed(q_y))
            pyro.sample("z", _given(self.posterior, x, len(self.posterior.data_shape), y))

    def classify(self, x: Tensor) -> Tensor:
        """Return q(y|x), the probabilities of the classes, (N, num_classes)."""
        with torch.no_grad(), evaluating(self):
            probs: Tensor = self.classifier(self._cast(x)).probs
        return probs.squeeze(-2)

    def decode(self, z: Tensor, *c: Tensor) -> TorchDistribution:
        """Return p(x | y, z), batch shape (N,), event shape data_shape.

        Args:
            z: y one-hot and z side by side, (N, num_classes + latent_dim).
            *c: labels (N,), which make no difference: y says it.
        """
        y, rest = self._cast(z).split([self.num_classes, self.prior.latent_dim], -1)
        found: TorchDistribution = self.likelihood(rest, y)
        return found

    def sample(self, n: int, *c: Tensor, seed: int | None = 0, mean: bool = False) -> Tensor:
        """Draw n data from the generative model: y ~ p(y), z ~ p(z), then x ~ p(x | y, z).

        Args:
            n: how many.
            *c: labels (n,), -1 where they are to be drawn; nothing to draw them all.
            seed: of the draws; None for the global generator.
            mean: return E[x | y, z] for the drawn y and z in place of x, where that is known.

        Returns:
            Tensor (n, *data_shape).

        Raises:
            ValueError: n is negative or no whole number, or other labels.
        """
        check_count(n)
        labels = self._labels(n, c)
        with torch.no_grad(), seeded(seed), evaluating(self):
            y = self._settled(self.class_prior(), labels).sample()
            x = self.likelihood(self.prior().sample((n,)), y)
            return mean_or_draw(x) if mean else x.sample()

    def reconstruct(self, x: Tensor, *c: Tensor, seed: int | None = 0) -> Tensor:
        """Return E[x' | y, z] for one y ~ q(y | x), or the label, and one z ~ q(z | x, y) a datum.

        Args:
            x: data (N, *data_shape).
            *c: labels (N,), -1 where unknown; or nothing where all are.
            seed: of the draws; None for the global generator.

        Returns:
            Tensor (N, *data_shape).
        """
        labels = self._labels(len(x), c)
        with torch.no_grad(), seeded(seed), evaluating(self):
            x = self._cast(x)
            y = self._settled(self.classifier(x), labels).sample()
            return mean_or_draw(self.likelihood(self.posterior(x, y).sample(), y))

    def _labels(self, n: int, c: tuple[Tensor, ...]) -> Tensor:
        """Return the labels (n,) of a context, all unknown where there is none."""
        like = next(self.classifier.parameters())
        if not c:
            return torch.full((n,), UNKNOWN, device=like.device)
        labels, *others = c
        whole = not labels.is_floating_point() and not labels.is_complex()
        if others or not whole or tuple(labels.shape) != (n,):
            got = ", ".join(f"{tuple(t.shape)} of {t.dtype}" for t in c)
            raise ValueError(
                f"expected labels ({n},) as context, whole numbers and -1 for what is unknown; got "
                f"{got}: labels.long()"
            )
        bad = (labels < UNKNOWN) | (labels >= self.num_classes)
        if Distribution._validate_args and bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"expected labels from 0 to {self.num_classes - 1}, or -1 for one that is unknown; "
                f"got {int(labels[row])} in row {row}: number the classes from 0, and build the "
                "pair with num_classes as many as they are"
            )
        return labels.long().to(like.device)

    def _one_hot(self, labels: Tensor) -> Tensor:
        """Return labels (N,) as (N, num_classes); of an unknown one, the first class."""
        return one_hot(labels.clamp(min=0), self.num_classes)

    def _settled(self, y: OneHotGroups, labels: Tensor) -> OneHotGroups:
        """Return the distribution of y with all mass on the label where it is known, (N,)."""
        on_label = self._one_hot(labels).to(y.logits).log().unsqueeze(-2)  # 0, or -inf elsewhere
        unknown = (labels == UNKNOWN)[:, None, None]
        return type(y)(torch.where(unknown, y.logits, on_label))


def keep_balanced(labels: Tensor, number: int, num_classes: int, seed: int = 0) -> Tensor:
    """Return labels (N,) of which `number` are kept, as many of each class, the others being -1.

    Where `number` is no multiple of the classes, some, by the seed, have one more.

    Args:
        labels: whole numbers from 0 to num_classes - 1.
        number: how many are kept.
        num_classes: how many classes there are.
        seed: of which these are.

    Raises:
        ValueError: too few of a class.

    Example:
        >>> keep_balanced(torch.tensor([0, 1, 0, 1, 0, 1]), 2, 2).unique(return_counts=True)
        (tensor([-1,  0,  1]), tensor([4, 1, 1]))
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    wanted = torch.full((num_classes,), number // num_classes)
    wanted[torch.randperm(num_classes, generator=generator)[: number % num_classes]] += 1
    kept = torch.full_like(labels, UNKNOWN)
    for label, many in enumerate(wanted.tolist()):
        rows = order[labels[order] == label]
        if len(rows) < many:
            raise ValueError(
                f"expected labelled, how many labels are kept, to leave {many} of class {label}; "
                f"the training data have {len(rows)} of it: take fewer than {number}"
            )
        kept[rows[:many]] = label
    return kept


def _given(part: Any, t: Tensor, event_dim: int, y: Tensor) -> TorchDistribution:
    """Return part(t, y) where y, or t too, may have left dimensions of classes summed over.

    Parts take context of one row a datum: what has more goes through them as rows.
    """
    batch = torch.broadcast_shapes(t.shape[: t.dim() - event_dim], y.shape[:-1])
    if len(batch) == 1:
        found: TorchDistribution = part(t, y)
        return found
    rows = [
        v.expand(*batch, *v.shape[v.dim() - k :]).flatten(0, len(batch) - 1)
        for v, k in ((t, event_dim), (y, 1))
    ]
    return _Unflattened(part(*rows), batch)


class _Unflattened(TorchDistribution):
    """A distribution of batch shape (prod(batch),), seen as one of batch shape `batch`."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, rows: TorchDistribution, batch: torch.Size) -> None:
        self.rows = rows
        super().__init__(batch, rows.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return bool(self.rows.has_rsample)

    @property
    def support(self) -> Any:
        return self.rows.support

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> TorchDistribution:
        return ExpandedDistribution(self, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        shape = self.batch_shape + self.event_shape
        value = value.expand(shape).reshape(-1, *self.event_shape)
        log_p: Tensor = self.rows.log_prob(value)
        return log_p.reshape(self.batch_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._unflat(self.rows.rsample(sample_shape), sample_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._unflat(self.rows.sample(sample_shape), sample_shape)

    def _unflat(self, value: Tensor, sample_shape: torch.Size) -> Tensor:
        return value.reshape(torch.Size(sample_shape) + self.batch_shape + self.event_shape)
