# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Model and guide in Pyro
#
# A VAE is two Pyro functions: a *model*, $p(z)\,p(x|z)$, and a *guide*, $q(z|x)$. Here they are
# written by hand, trained by Pyro's own `SVI`, and checked; then the same pair is put together
# from parts. What the ELBO is, and why, is in `01_why_vaes_are_variational`.
#
# 1. Two functions
# 2. The ELBO three times: Pyro's two, and one by hand
# 3. Training
# 4. Is it right? `check_pair`
# 5. What else takes a pair
# 6. The same from parts

# %%
import copy
import math
import os

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae import build, data, diagnostics, evidence, fit, log_weights, plots, testing

# %%
# %matplotlib inline
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
torch.set_default_dtype(torch.float64)  # so that "equal" can mean equal to ten digits

# %% [markdown]
# The sizes of this run, all in one place.

# %% tags=["parameters"]
SMOKE = bool(os.environ.get("PYROVAE_SMOKE"))
EPOCHS, PARTICLES, SIMULATIONS = (2, 50, 80) if SMOKE else (60, 1000, 1000)

# %% [markdown]
# ## 1. Two functions
#
# The data: handwritten digits of 8 x 8 pixels, each 0 or 1. You will see how many there are.

# %%
digits = data.load("digits", binarize="threshold")
train, test = digits.train.to(torch.get_default_dtype()), digits.test.to(torch.get_default_dtype())
print(tuple(train.shape), tuple(test.shape))

# %% [markdown]
# Two networks, plain PyTorch: the encoder gives the mean and the log variance of $q(z|x)$, the
# decoder the logits of $p(x|z)$.

# %%
torch.manual_seed(0)
encoder = nn.Sequential(
    nn.Flatten(-2), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4), nn.Unflatten(-1, (2, 2))
)
decoder = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Unflatten(-1, (8, 8)))

# %% [markdown]
# The pair. Three things make it valid: one *plate* over the data, `to_event` on what belongs to
# one datum, and the same latent site `"z"` on both sides. `pyro.module` is what makes `SVI` train
# a network.
#
# $$z \sim \mathcal N(0, I), \qquad
# x|z \sim \operatorname{Bernoulli}(\operatorname{logits} = \text{decoder}(z)),
# \qquad q(z|x) = \mathcal N(\mu(x), \operatorname{diag} \sigma^2(x))$$


# %%
def model(x):
    """p(z) p(x|z)."""
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(2), obs=x)


def guide(x):
    """q(z|x)."""
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        mean, log_variance = encoder(x).unbind(-2)
        pyro.sample("z", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))


# %% [markdown]
# You will see the shapes as Pyro has them, for five images: left of the bar the batch (the plate),
# right of it the event. A datum has one log-density, so every `log_prob` is of shape (5,).

# %%
trace = poutine.trace(model).get_trace(test[:5])
trace.compute_log_prob()
print(trace.format_shapes())

# %% [markdown]
# ## 2. The ELBO three times
#
# Pyro estimates the ELBO by `Trace_ELBO`, which draws everything, or by `TraceMeanField_ELBO`,
# which takes KL$(q(z|x)\|p(z))$ in closed form. By hand, with no Pyro in it, the latter is five
# lines:
#
# $$\text{ELBO} = \mathbb E_q[\log p(x|z)] - \mathrm{KL}(q(z|x)\|p(z)),
# \qquad z = \mu + \sigma\varepsilon$$


# %%
def manual_elbo(x):
    """One entry a datum, (N,)."""
    mean, log_variance = encoder(x).unbind(-2)
    z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits
    reconstruction = -cross_entropy(decoder(z), x, reduction="none").sum((1, 2))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    return reconstruction - kl


# %% [markdown]
# You will see all three on one batch with the same noise, and their gradients. By hand and
# `TraceMeanField_ELBO` are the same number with the same gradient; `Trace_ELBO` is another draw of
# the same expectation.


# %%
def loss_and_gradient(loss):
    """A loss at a fixed seed, and its gradient by all weights as one vector."""
    pyro.set_rng_seed(0)
    weights = [*encoder.parameters(), *decoder.parameters()]
    value = loss(test[:100])
    return value.item(), nn.utils.parameters_to_vector(torch.autograd.grad(value, weights))


losses = {
    "by hand": lambda x: -manual_elbo(x).sum(),
    "TraceMeanField_ELBO": lambda x: TraceMeanField_ELBO().differentiable_loss(model, guide, x),
    "Trace_ELBO": lambda x: Trace_ELBO().differentiable_loss(model, guide, x),
}

# %%
found = {name: loss_and_gradient(loss) for name, loss in losses.items()}
value, gradient = found["by hand"]
for name, (v, g) in found.items():
    print(
        f"{name:>19}: -ELBO {v:.8f}, largest gradient difference {(g - gradient).abs().max():.0e}"
    )
assert math.isclose(found["TraceMeanField_ELBO"][0], value, rel_tol=1e-12)
assert torch.allclose(found["TraceMeanField_ELBO"][1], gradient, atol=1e-9)

# %% [markdown]
# The same expectation: you will see the means over many draws of the noise agree within their
# standard errors, per image.

# %%
pyro.set_rng_seed(1)
with torch.no_grad():
    drawn = {k: torch.stack([f(test) for _ in range(PARTICLES)]) for k, f in losses.items()}
for name, values in drawn.items():
    per_image = values / len(test)
    se = per_image.std() / math.sqrt(PARTICLES)
    print(f"{name:>19}: {per_image.mean():.5f} +- {se:.5f}, one draw +- {per_image.std():.4f}")
a, b = drawn["Trace_ELBO"], drawn["by hand"]
assert (a.mean() - b.mean()).abs() < 4.5 * ((a.var() + b.var()) / PARTICLES).sqrt()

# %% [markdown]
# ## 3. Training
#
# As any Pyro user would: an optimiser, an objective, `SVI.step`. After each epoch the ELBO on the
# test images, from `log_weights(model, guide, x)`, which takes any pair: the mean of
# $\log w = \log p(x, z) - \log q(z|x)$.

# %%
start = [{k: v.clone() for k, v in net.state_dict().items()} for net in (encoder, decoder)]


def trained(step):
    """Train from the same start with the same seed; return the test ELBO after every epoch."""
    pyro.set_rng_seed(0)
    elbos = []
    for _ in range(EPOCHS):
        for batch in train[torch.randperm(len(train))].split(64):
            step(batch)
        elbos.append(log_weights(model, guide, test, num_particles=10).mean().item())
    return elbos


# %% [markdown]
# The start is the same for all three, and so is the noise. `clear_param_store` is not idle: Pyro's
# store would go on with the parameters that it knows under these names.


# %%
def restart():
    """Set both networks back; return their weights."""
    pyro.clear_param_store()
    encoder.load_state_dict(start[0])
    decoder.load_state_dict(start[1])
    return [*encoder.parameters(), *decoder.parameters()]


curves, final = {}, {}
for objective in (Trace_ELBO(), TraceMeanField_ELBO()):
    weights = restart()
    name = type(objective).__name__
    curves[name] = trained(SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), objective).step)
    final[name] = nn.utils.parameters_to_vector(weights).detach().clone()

# %% [markdown]
# By hand, with `torch.optim.Adam` and no Pyro.

# %%
weights = restart()
adam = torch.optim.Adam(weights, lr=3e-3)


def step(x):
    """One step of gradient descent on minus the ELBO."""
    adam.zero_grad()
    (-manual_elbo(x).sum()).backward()
    adam.step()


curves["by hand"] = trained(step)
final["by hand"] = nn.utils.parameters_to_vector(weights).detach().clone()

# %% [markdown]
# You will see three curves of which two lie on each other: Pyro's `SVI` and plain PyTorch arrive
# at the *same weights*. Pyro adds nothing to the arithmetic; what it adds is that the pair can be
# asked for more.

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
styles = {"Trace_ELBO": "-", "TraceMeanField_ELBO": "-", "by hand": "--"}
for (name, style), colour in zip(styles.items(), ("#c8553d", "#0b5fa5", "#222222"), strict=True):
    axes.plot(range(1, EPOCHS + 1), curves[name], style, color=colour, label=name)
axes.set(xlabel="epoch", ylabel="test ELBO, nats an image")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %%
difference = (final["by hand"] - final["TraceMeanField_ELBO"]).abs().max()
print({name: round(curve[-1], 3) for name, curve in curves.items()})
print(f"largest difference of a weight, by hand against SVI: {difference:.0e}")
assert difference < 1e-6

# %% [markdown]
# ## 4. Is it right?
#
# A pair can be wrong and still train. `check_pair` looks at its structure, and has every estimator
# of the ELBO compute the same thing. You will see the table for our two functions: nothing fails.

# %%
report = testing.check_pair(model, guide, test[:20], modules=(encoder, decoder))
print(report)
assert report.ok

# %% [markdown]
# Now three pairs that train without an error. You will see what `check_pair` says of each: which
# site or parameter, and why. First, a "$\beta$-VAE" by `poutine.scale` on the guide alone:
# `TraceMeanField_ELBO` then counts the KL twice, `Trace_ELBO` the guide's entropy.


# %%
def scaled_guide(x):
    """The guide, its latent site scaled by 2."""
    with poutine.scale(scale=2.0):
        guide(x)


def failures(model, guide, decoder=decoder):
    """Print what check_pair finds against a pair that must fail."""
    report = testing.check_pair(model, guide, test[:20], modules=(encoder, decoder))
    assert not report.ok
    for failure in report.failures:
        print(f"- {failure.message}")


failures(model, scaled_guide)

# %% [markdown]
# Second, a new decoder under the old name, which is what happens when a notebook's cell is run
# again. Pyro's store goes on with the old one. You will see how far twenty steps of `SVI` move the
# new weights.

# %%
renewed = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Unflatten(-1, (8, 8)))


def second_model(x):
    """The model, of another decoder under the same name."""
    pyro.module("decoder", renewed)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=renewed(z)).to_event(2), obs=x)


# %%
before = [p.detach().clone() for p in renewed.parameters()]
pyro.clear_param_store()
pyro.module("decoder", copy.deepcopy(decoder))  # the first run of the cell
frozen = poutine.block(guide, hide_types=["param"])  # the guide stays as it is
svi = SVI(second_model, frozen, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
for _ in range(20):
    svi.step(train[:64])
moved = max((p - b).abs().max() for p, b in zip(renewed.parameters(), before, strict=True))
print(f"largest change of a weight: {moved.item()}")
assert moved == 0
failures(second_model, guide, renewed)
pyro.clear_param_store()

# %% [markdown]
# Third, a guide that centres $x$ by its batch: then $q(z|x)$ of one image depends on the others in
# the batch.


# %%
def centring_guide(x):
    """The guide, of x minus the batch's mean."""
    guide(x - x.mean(0))


failures(model, centring_guide)

# %% [markdown]
# ## 5. What else takes a pair
#
# Everything in the library has the signature of `SVI`, so it takes our two functions too. First
# the evidence. You will see the identity $\log p(x) = \text{ELBO} + \mathrm{KL}$ hold for each of
# five images, and importance sampling beside the quadrature, with its error in its own standard
# errors. Where the guide misses part of the posterior (a large KL) the sample may miss it too, and
# then it is low by more than its standard error knows. $\hat k$ above 0.7 warns of this, but only
# if some of that part was drawn.

# %%
some, nets = test[:5], {"modules": (encoder, decoder)}
sampled = evidence.iwae(model, guide, some, num_particles=PARTICLES, **nets)
found = evidence.identity(model, guide, some, **nets)
columns = {
    "ELBO": found.elbo, "KL": found.kl, "ELBO + KL": found.elbo + found.kl,
    "log p(x)": found.log_evidence, "sampled": sampled.log_evidence,
    "off, in se": (sampled.log_evidence - found.log_evidence) / sampled.standard_error,
    "k-hat": diagnostics.khat(model, guide, some, num_particles=PARTICLES, **nets).khat,
}  # fmt: skip
assert (found.residual.abs() < 1e-6).all()
pd.DataFrame(columns).rename_axis("image").round(3)

# %% [markdown]
# Then calibration: draw $z^*$ and $x^*$ from the model, and rank $z^*$ among draws of $q(z|x^*)$.
# If the guide were the posterior, all ranks would be equally likely. You will see that they are
# not: the guide was trained on real digits, and is asked here about the model's own.

# %%
calibration = diagnostics.calibration(model, guide, test, num_simulations=SIMULATIONS, **nets)
print(calibration)
plots.calibration(calibration)

# %% [markdown]
# ## 6. The same from parts
#
# A *part* is a module whose call returns a distribution; `VAE` makes a pair of three of them.
# Given the very networks from above, you will see the very same numbers: the pair by hand and the
# pair from parts are one.

# %%
from pyrovae import VAE, likelihoods, posteriors, priors

shapes = {"latent_dim": 2, "data_shape": (8, 8)}
vae = VAE(
    prior=priors.StandardNormal(latent_dim=2),
    likelihood=likelihoods.Bernoulli(net=decoder, **shapes),
    posterior=posteriors.MeanFieldNormal(net=encoder, **shapes),
)
by_hand = log_weights(model, guide, test, num_particles=10)
from_parts = log_weights(vae.model, vae.guide, test, num_particles=10)
assert torch.allclose(by_hand, from_parts, atol=1e-10)
print(f"ELBO {by_hand.mean():.8f} by hand, {from_parts.mean():.8f} from parts")

# %% [markdown]
# The manual ELBO comes with the parts, as an objective for `SVI` or `fit`. You will see it agree
# with Pyro's, at the same noise, and with our five lines.

# %%
from pyrovae.objectives import ManualELBO

for objective in (ManualELBO(), TraceMeanField_ELBO()):
    pyro.set_rng_seed(0)
    loss = objective.loss(vae.model, vae.guide, test[:100])
    print(f"{type(objective).__name__:>19}: -ELBO {loss:.8f}")
    pyro.set_rng_seed(0)
    assert math.isclose(loss, -manual_elbo(test[:100]).sum().item(), rel_tol=1e-12)
assert testing.check_pair(vae.model, vae.guide, test[:20]).ok

# %% [markdown]
# From parts, a change is a word. You will see the test ELBO and the evidence of five pairs by
# name, each trained by `fit`, with standard errors over the images. (One seed each: small
# differences mean nothing.)

# %%
words = [
    ("standard-normal", "mean-field-normal", 2), ("standard-normal", "full-rank-normal", 2),
    ("mixture-of-normals", "mean-field-normal", 2), ("vamp-prior", "mean-field-normal", 2),
    ("standard-normal", "mean-field-normal", 10),
]  # fmt: skip
pairs, rows = {}, {}
for prior, posterior, d in words:
    new = build(data_shape=(8, 8), latent_dim=d, prior=prior, posterior=posterior, hidden=(64,))
    fit(new.model, new.guide, train, epochs=EPOCHS, batch_size=64, lr=3e-3)
    log_w = log_weights(new.model, new.guide, test, num_particles=PARTICLES)
    bounds = log_w.mean(0), log_w.logsumexp(0) - math.log(PARTICLES)
    rows[prior, posterior, d] = [f"{b.mean():.2f} +- {b.std() / len(b) ** 0.5:.2f}" for b in bounds]
    pairs[prior, posterior, d] = new
pd.DataFrame.from_dict(rows, orient="index", columns=["test ELBO", "log p(x), at least"])

# %% [markdown]
# And the pictures. You will see test images above their reconstructions by the last pair, then
# where the guide of the first puts the ten digits in the latent plane.

# %%
plots.reconstructions(new, digits.test)

# %%
plots.latent(pairs[words[0]], test, digits.labels["test"])

# %% [markdown]
# ---
# The sizes of this run: the small ones if and only if it is a smoke run.

# %%
assert (
    SMOKE == (len(curves["by hand"]) < 10) == (len(log_w) < 100) == (len(calibration.ranks) < 500)
)
print(f"smoke run: {SMOKE}; {EPOCHS} epochs, {len(log_w)} particles")
