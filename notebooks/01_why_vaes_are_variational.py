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
# # Why VAEs are variational
#
# A variational autoencoder maximises a bound on $\log p(x)$. This notebook measures the bound:
# every step of the argument ends in an equality that is asserted, or in a number with its error.
#
# $$\log p(x) \;=\;
# \underbrace{\mathbb E_{q(z|x)}\!\left[\log\frac{p(x,z)}{q(z|x)}\right]}_{\text{ELBO}}
# \;+\; \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big)$$
#
# 1. Bayes, and the integral that nobody can do
# 2. The two directions of KL
# 3. Three forms of the ELBO
# 4. KL in closed form, and by Monte Carlo
# 5. Squared error is a Gaussian log-likelihood
# 6. Two gradients of one expectation
# 7. The duality, over training
#
# Everything is in nats. `q` is the *guide*, Pyro's word for the approximate posterior.

# %%
import math
import os
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

from pyrovae import build, data, divergences, evidence, fit, likelihoods, plots

# %%
# %matplotlib inline
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
torch.set_default_dtype(torch.float64)  # so that "equal" can mean equal to ten digits

# %% [markdown]
# The sizes of this run, all in one place.

# %% tags=["parameters"]
SMOKE = bool(os.environ.get("PYROVAE_SMOKE"))
DRAWS, EPOCHS, ROWS = (2_000, 4, 2) if SMOKE else (200_000, 40, 6)

# %% [markdown]
# ## 1. Bayes, and the integral that nobody can do
#
# The smallest latent variable model with something to show: one hidden number $z$, one observed
# number $x$ that is $z^2$ with noise.
#
# $$p(z) = \mathcal N(0, 1), \qquad p(x|z) = \mathcal N(z^2, 0.5^2), \qquad
# p(z|x) = \frac{p(x|z)\,p(z)}{p(x)}, \qquad p(x) = \int p(x|z)\,p(z)\,dz$$
#
# With one latent dimension the integral is a sum over a fine lattice. You will see $p(x)$ at
# $x = 2$, and a posterior with two modes: $x$ cannot tell $z = \sqrt 2$ from $z = -\sqrt 2$.

# %%
prior = dist.Normal(0.0, 1.0)
x = torch.tensor(2.0)


def log_joint(z):
    """log p(x, z) = log p(z) + log p(x|z)."""
    return prior.log_prob(z) + dist.Normal(z.square(), 0.5).log_prob(x)


z = torch.linspace(-6, 6, 4001)
p_x = torch.trapezoid(log_joint(z).exp(), z)
posterior = log_joint(z).exp() / p_x
print(f"p(x) = {p_x:.6f}    log p(x) = {p_x.log():.6f}")

# %%
figure, axes = plt.subplots(figsize=(7.5, 3), layout="constrained")
axes.plot(z, prior.log_prob(z).exp(), color="#8c8c8c", label="prior p(z)")
likelihood = dist.Normal(z.square(), 0.5).log_prob(x).exp()
axes.plot(z, likelihood, color="#8c8c8c", linestyle=":", label="likelihood p(x|z), of z")
axes.fill_between(z, posterior, color="#c8553d", alpha=0.25, linewidth=0)
axes.plot(z, posterior, color="#c8553d", label="posterior p(z|x)")
axes.set(xlim=(-4, 4), ylim=(0, 1.45), xlabel="z", title="x = 2")
axes.legend(frameon=False, fontsize=8, loc="upper center")
plt.show()

# %% [markdown]
# The alternative to a lattice is to draw $z$ from the prior and average $p(x|z)$. You will see it
# work here, within its standard error, though most of the draws are wasted: the *effective sample
# size* says how many of them count.

# %%
torch.manual_seed(0)
w = dist.Normal(prior.sample((DRAWS,)).square(), 0.5).log_prob(x).exp()
standard_error = w.std() / math.sqrt(DRAWS)
ess = w.sum() ** 2 / w.square().sum()
print(f"p(x) = {w.mean():.5f} +- {standard_error:.5f}, and {p_x:.5f} by the lattice")
print(f"{DRAWS:,} draws, of which {ess / DRAWS:.0%} count")
assert (w.mean() - p_x).abs() < 4.5 * standard_error

# %% [markdown]
# Neither survives the dimensions of a real model. Below, the same two computations where $x$ is
# $d$ such numbers, each with a $z$ of its own: the points of the lattice, and the effective sample
# size of a million draws from the prior (in this model the share that counts is that of one
# dimension to the power $d$).

# %%
second_moment = torch.trapezoid(likelihood * posterior * p_x, z)  # E[p(x|z)^2], z ~ p(z)
share = p_x.square() / second_moment
dims = [1, 2, 5, 10, 20]
columns = {
    "lattice, 100 points a dimension": [f"{100.0**d:.0e}" for d in dims],
    "of 1,000,000 draws count": [f"{1e6 * share**d:,.2g}" for d in dims],
}
pd.DataFrame(columns, index=pd.Index(dims, name="latent dimensions"))

# %% [markdown]
# ## 2. The two directions of KL
#
# So the posterior is *approximated*, by the member $q$ of a tractable family that is nearest to
# it. What is measured is the Kullback-Leibler divergence, which is no distance: it has a
# direction. You will see two normals whose divergence is one number one way and another the other
# way.
#
# $$\mathrm{KL}(p\,\|\,q) = \mathbb E_p\!\left[\log\frac{p(z)}{q(z)}\right] \ne
# \mathrm{KL}(q\,\|\,p) = \mathbb E_q\!\left[\log\frac{q(z)}{p(z)}\right]$$

# %%
narrow, wide = dist.Normal(0.0, 1.0), dist.Normal(0.0, 3.0)
print(f"KL(narrow || wide) = {divergences.closed(narrow, wide):.4f}")
print(f"KL(wide || narrow) = {divergences.closed(wide, narrow):.4f}")

# %% [markdown]
# Which direction one minimises decides what the fit looks like. You will see a target $p$ of two
# modes, and the normal fitted to it by each: the *forward* KL$(p\|q)$ punishes $q$ for missing
# mass of $p$, so it covers both modes and the desert between them; the *reverse* KL$(q\|p)$
# punishes $q$ for mass where $p$ has none, so it sits on one mode. Under each picture, both
# divergences of both fits: each fit is the better one by its own measure.

# %%
plots.forward_reverse()

# %% [markdown]
# Now the posterior of section 1. The forward KL is an expectation under the posterior, which is
# what we do not have: it takes importance-weighted draws. The reverse KL is an expectation under
# $q$, which we can sample; and it needs the posterior up to a factor only, so $p(x, z)$ will do.
# That is why a VAE, like all variational inference, minimises the reverse one. You will see both
# fits.


# %%
def of_vector(z):
    """log p(x, z) of z (N, 1), the shape that a family of distributions over R^d takes."""
    return log_joint(z.squeeze(-1))


family = divergences.NormalFamily(1, loc=1.0)
proposal = dist.Normal(torch.zeros(1), 1.5).to_event(1)
forward = divergences.fit_forward(of_vector, family, proposal=proposal, steps=400)
reverse = divergences.fit_reverse(of_vector, family, steps=400)
fits = {"forward": forward.q, "reverse": reverse.q}
for name, q in fits.items():
    print(f"{name} fit: mean {q.mean.item():.3f}, sd {q.stddev.item():.3f}")

# %%
figure, axes = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
axes.fill_between(z, posterior, color="#8c8c8c", alpha=0.35, linewidth=0, label="posterior p(z|x)")
for (name, q), colour in zip(fits.items(), ("#0b5fa5", "#c8553d"), strict=True):
    axes.plot(z, q.log_prob(z[:, None]).exp(), color=colour, label=f"{name} fit")
axes.set(xlim=(-4, 4), ylim=(0, None), xlabel="z")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Both divergences of both fits, now by the lattice: each fit is the better one by its own measure.

# %%
log_p = log_joint(z) - p_x.log()
table = pd.DataFrame(index=[f"{name} fit" for name in fits])
for name, q in fits.items():
    log_q = q.log_prob(z[:, None])
    forward_kl = torch.trapezoid(log_p.exp() * (log_p - log_q), z)
    reverse_kl = torch.trapezoid(log_q.exp() * (log_q - log_p), z)
    table.loc[f"{name} fit", ["KL(p || q)", "KL(q || p)"]] = forward_kl.item(), reverse_kl.item()
assert table.idxmin().tolist() == ["forward fit", "reverse fit"]
table.round(4)

# %% [markdown]
# ## 3. Three forms of the ELBO
#
# Put $p(x) = p(x, z)/p(z|x)$ under the logarithm, multiply and divide by $q$, and take the
# expectation under $q$: the left side has no $z$ in it and stays. That is the identity at the top,
# and since a KL is never negative the first term is a lower bound, the *ELBO*. Three ways to write
# it:
#
# $$\mathbb E_q[\log p(x,z)] - \mathbb E_q[\log q(z|x)] \;=\;
# \mathbb E_q[\log p(x|z)] - \mathrm{KL}(q(z|x)\|p(z)) \;=\;
# \log p(x) - \mathrm{KL}(q(z|x)\|p(z|x))$$
#
# The model and a guide, as two Pyro functions. The guide's mean is handed to it, so that we can
# try many; it need not be good, for the identity holds for any $q$.


# %%
def model(x, mean):
    """z ~ N(0, 1), x ~ N(z^2, 0.5^2); the mean is the guide's."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z.square(), 0.5), obs=x)


def guide(x, mean):
    """z ~ N(mean, 0.2^2)."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mean, 0.2))


# %% [markdown]
# You will see one row for each guide, one column for each form. They are computed apart (the first
# two by Gauss-Hermite nodes of $q$, the third by lattices over $p(x, z)$ and over the posterior),
# and the rows agree to ten digits.

# %%
means = torch.tensor([0.0, 0.5, 1.0, 1.4])
xs = x.expand(len(means))
forms = {
    "E log p(x,z) - E log q": evidence.elbo_of_joint(model, guide, xs, means),
    "E log p(x|z) - KL(q || p(z))": evidence.elbo_of_reconstruction(model, guide, xs, means),
    "log p(x) - KL(q || p(z|x))": evidence.elbo_of_evidence(model, guide, xs, means),
}
for form in forms.values():
    assert torch.allclose(form, next(iter(forms.values())), rtol=0, atol=1e-10)
table = pd.DataFrame(forms, index=pd.Index(means.numpy(), name="mean of q"))
table.map("{:.10f}".format)

# %% [markdown]
# Now slide the guide along. You will see the ELBO rise towards $\log p(x)$ where the guide sits on
# a mode, and never touch it: a normal is no two-moded posterior, and the gap *is* the divergence.
# The numbers under the picture: the largest error of the identity over all guides, and the
# smallest gap.

# %%
means = torch.linspace(-2.2, 2.2, 89)
swept = evidence.identity(model, guide, x.expand(len(means)), means)
figure, axes = plt.subplots(figsize=(7.5, 3), layout="constrained")
axes.plot(means, swept.log_evidence, color="#222222", label="log p(x)")
axes.plot(means, swept.elbo, color="#0b5fa5", label="ELBO")
axes.fill_between(means, swept.elbo, swept.log_evidence, color="#c8553d", alpha=0.18, linewidth=0)
axes.text(0, -5.5, "KL(q(z|x) || p(z|x))", ha="center", color="#c8553d", fontsize=9)
axes.set(xlabel="mean of the guide", ylabel="nats", xlim=(-2.2, 2.2), ylim=(-10, -1.5))
axes.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
plt.show()

# %%
best = swept.elbo.argmax()
print(f"log p(x) - ELBO - KL, at most {swept.residual.abs().max():.1e} over {len(means)} guides")
print(f"best guide: mean +-{means[best].abs():.2f}, KL {swept.kl[best]:.4f} nats")
print(f"which is log 2 and {swept.kl[best] - math.log(2):.4f} more")
assert (swept.residual.abs() < 1e-9).all() and (swept.elbo < swept.log_evidence).all()

# %% [markdown]
# $\log 2$ is what it costs to know one of the posterior's two halves and not the other: one bit.
# The rest is that a half is no normal, and that 0.2 is not the best scale: the reverse fit of
# section 2, its scale free, comes a little closer.
#
# ## 4. KL in closed form, and by Monte Carlo
#
# In the second form the KL is between the guide and the prior. Where both are normal it needs no
# draws: $\mathbb E_q[z^2] = \mu^2 + \sigma^2$, and so
#
# $$\mathrm{KL}\big(\mathcal N(\mu, \operatorname{diag}\sigma^2)\,\|\,\mathcal N(0, I)\big) =
# \tfrac12 \sum_i \big(\mu_i^2 + \sigma_i^2 - 1 - \log\sigma_i^2\big)$$
#
# You will see this line equal to the library's closed form, and a Monte Carlo estimate within its
# standard error of it. The last line is a common slip, $\sigma$ for $\sigma^2$: draws tell it from
# the truth.

# %%
mu, sigma = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.8, 0.3, 0.9])
by_hand = 0.5 * (mu**2 + sigma**2 - 1 - torch.log(sigma**2)).sum()
q, p = dist.Normal(mu, sigma).to_event(1), dist.Normal(torch.zeros(3), 1.0).to_event(1)
assert torch.allclose(by_hand, divergences.closed(q, p))
drawn = divergences.monte_carlo(q, p, num_samples=DRAWS)
off = (drawn.value - by_hand) / drawn.standard_error
print(f"closed: {by_hand:.5f}")
print(f"drawn: {drawn.value:.5f} +- {drawn.standard_error:.5f}, {off:.1f} se off")
slip = 0.5 * (mu**2 + sigma - 1 - torch.log(sigma)).sum()
print(f"the slip: {slip:.5f}, {(slip - drawn.value) / drawn.standard_error:.0f} se off")
assert off.abs() < 4.5

# %% [markdown]
# The estimate's error falls as $1/\sqrt n$. You will see it for two estimators of the same number:
# the plain mean of $-\log r$, $r = p(z)/q(z)$, and the mean of $(r - 1) - \log r$, which has the
# same expectation and is never negative (Schulman 2020). With $q$ near $p$, on the left, the
# second has the smaller error. On the right $q$ is much narrower than $p$, so that $r$ has no
# finite variance: the second estimator is far off, and its own standard error does not know it.

# %%
counts = [2**k for k in range(6, 18 if not SMOKE else 11)]
near = dist.Normal(torch.tensor([0.1, -0.1, 0.0]), torch.tensor([0.95, 0.9, 1.0])).to_event(1)
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharex=True)
for axes, guess, where in zip(panels, (near, q), ("q near p", "q too narrow"), strict=True):
    for name, colour in (("plain", "#0b5fa5"), ("positive", "#3a7d44")):
        kls = [divergences.monte_carlo(guess, p, num_samples=n, estimator=name) for n in counts]
        axes.loglog(counts, [k.standard_error for k in kls], color=colour, label=f"{name}, its se")
        errors = [(k.value - divergences.closed(guess, p)).abs() for k in kls]
        axes.loglog(counts, errors, ".", color=colour, label=f"{name}, its error")
    axes.set(xlabel="draws", ylabel="nats", title=where)
panels[0].legend(frameon=False, fontsize=7)
plt.show()

# %% [markdown]
# Closed or drawn: in Pyro that is the choice between `TraceMeanField_ELBO`, which takes the KL in
# closed form, and `Trace_ELBO`, which draws it.
#
# ## 5. Squared error is a Gaussian log-likelihood
#
# The other term, $\mathbb E_q[\log p(x|z)]$, is what code calls the reconstruction loss. For a
# normal likelihood with a fixed $\sigma$ it is squared error, scaled, up to a constant:
#
# $$-\log \mathcal N(x; \mu, \sigma^2 I) =
# \frac{\|x - \mu\|^2}{2\sigma^2} + \frac D2 \log 2\pi\sigma^2$$
#
# You will see both sides on handwritten digits and an untrained decoder, equal in value and, the
# constant being constant, in every gradient.

# %%
digits = data.load("digits")
images = digits.train[:100].to(torch.get_default_dtype())
torch.manual_seed(0)
decoder = likelihoods.Normal(latent_dim=2, data_shape=(8, 8), variance=likelihoods.Fixed(0.3))
codes = torch.randn(len(images), 2)
p_of_x = decoder(codes)
D, squared_error = 64, (images - p_of_x.mean).square().sum((1, 2))
by_hand = squared_error / (2 * 0.3**2) + D / 2 * math.log(2 * math.pi * 0.3**2)
assert torch.allclose(by_hand, -p_of_x.log_prob(images))
print(f"nats a digit: {by_hand.mean():.6f} = {-p_of_x.log_prob(images).mean():.6f}")

# %%
weights = list(decoder.parameters())
of_error = torch.autograd.grad(squared_error.sum() / (2 * 0.3**2), weights, retain_graph=True)
of_density = torch.autograd.grad(-p_of_x.log_prob(images).sum(), weights)
largest = max((a - b).abs().max() for a, b in zip(of_error, of_density, strict=True))
print(f"{len(weights)} parameter tensors, largest difference of gradients {largest:.1e}")
assert largest < 1e-9

# %% [markdown]
# So whoever writes "mean squared error + KL" has chosen a $\sigma$, whether they know it or not.
# The mean over $D$ pixels is $\|x - \mu\|^2/D$, which is the formula above at $2\sigma^2 = D$: for
# these digits $\sigma = 5.7$, for pixels that lie in $[0, 1]$. You will see what that costs:
# $\log p(x|z)$ of the same reconstruction at that $\sigma$, at the 0.3 chosen above, and at the
# best one, whose square is the mean squared error; and how much less the reconstruction then
# weighs against the KL.

# %%
mse = squared_error.mean() / D
for name, s in (("of the mean", math.sqrt(D / 2)), ("chosen", 0.3), ("best", mse.sqrt().item())):
    log_p = dist.Normal(p_of_x.mean, s).to_event(2).log_prob(images).mean()
    print(f"sigma {s:.3f} ({name}): log p(x|z) = {log_p:.2f} nats a digit")
print(f"against the KL the mean counts the error {D / 2 / mse:.0f} times less than the best does")
implied = dist.Normal(p_of_x.mean, math.sqrt(D / 2)).to_event(2).log_prob(images)
constant = D / 2 * math.log(2 * math.pi * D / 2)
assert torch.allclose(squared_error / D, -implied - constant)

# %% [markdown]
# ## 6. Two gradients of one expectation
#
# The ELBO is an expectation under $q$, and $q$ is what we differentiate. Two ways to do that with
# draws:
#
# $$\text{score function:} \quad
# \nabla_\mu \mathbb E_q[f(z)] = \mathbb E_q[f(z)\,\nabla_\mu \log q(z)]$$
#
# $$\text{reparameterised, } z = \mu + \sigma\varepsilon\text{:} \quad
# \nabla_\mu \mathbb E_\varepsilon[f(\mu + \sigma\varepsilon)] = \mathbb E_q[f'(z)]$$
#
# Here $f(z) = \log p(x, z) - \log q(z)$ in the model of section 1 (the gradient of $\log q$ itself
# has expectation zero, so it is left out). You will see that both hit the exact gradient, found by
# the lattice, within their standard errors; and that the variance of a single draw differs.

# %%
mu, sigma = torch.tensor(1.0, requires_grad=True), 0.3
log_q = dist.Normal(mu, sigma).log_prob(z)
elbo = torch.trapezoid(log_q.exp() * (log_joint(z) - log_q), z)
(exact,) = torch.autograd.grad(elbo, mu)
print(f"d ELBO / d mu = {exact:.5f}, by the lattice")

# %%
torch.manual_seed(0)
mus = torch.full((DRAWS,), 1.0, requires_grad=True)  # one mu a draw, so one gradient a draw
drawn = mus + sigma * torch.randn(DRAWS)
f = log_joint(drawn) - dist.Normal(mus.detach(), sigma).log_prob(drawn)
(reparameterised,) = torch.autograd.grad(f.sum(), mus)
score = f.detach() * (drawn - mus).detach() / sigma**2  # the gradient of log q by mu
for name, g in (("reparameterised", reparameterised), ("score function", score)):
    se = g.std() / math.sqrt(DRAWS)
    print(f"{name:>15}: {g.mean():.4f} +- {se:.4f}, variance of one draw {g.var():.1f}")
    assert (g.mean() - exact).abs() < 4.5 * se

# %% [markdown]
# In one dimension that is a difference; in many it decides. On the left you will see the single
# draws, on the right the variance of one gradient entry as the latent dimension grows, for a
# normal $q$ and a normal target: the score function's grows as $d^2$, with a baseline subtracted
# from $f$ as $d$, and the reparameterised one's not at all, since each $z_i$ has a derivative of
# its own.


# %%
def variances(d, n=2000 if SMOKE else 20_000):
    """Return the three variances of d/d mu_1 of E_q[-|z|^2 / 2], q = N(1, I) over R^d."""
    centred = torch.randn(n, d)
    f = -0.5 * (1 + centred).square().sum(1)
    score = f * centred[:, 0]
    baseline = (f - f.mean()) * centred[:, 0]
    return [g.var().item() for g in (-(1 + centred[:, 0]), baseline, score)]


torch.manual_seed(0)
dims = [1, 2, 4, 8, 16, 32, 64, 128]
table = torch.tensor([variances(d) for d in dims])
slope = (table[-1] / table[-4]).log() / math.log(dims[-1] / dims[-4])
print("growth from 16 to 128 dimensions, as a power of d:", [f"{s:.1f}" for s in slope])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.1), layout="constrained")
colours = {"reparameterised": "#0b5fa5", "score, baseline": "#3a7d44", "score function": "#c8553d"}
for name, g in (("score function", score), ("reparameterised", reparameterised)):
    left.hist(g, bins=80, range=(-15, 40), density=True, color=colours[name], alpha=0.6, label=name)
left.axvline(exact.item(), color="#222222", linewidth=1, label="exact")
left.set(xlabel="gradient by one draw", ylabel="density", title="z in one dimension")
left.legend(frameon=False, fontsize=7)
for name, column in zip(colours, table.T, strict=True):
    right.loglog(dims, column, ".-", color=colours[name], label=name)
right.set(xlabel="latent dimensions", ylabel="variance of a draw", title="one gradient entry")
right.legend(frameon=False, fontsize=7)
plt.show()

# %% [markdown]
# ## 7. The duality, over training
#
# Now a VAE: two latent dimensions, binarised digits, and the identity measured on a few test
# images while `fit` trains. The three terms come from three different computations: $\log p(x)$
# from a lattice that the *model* lays out, the ELBO from nodes of $q$, the KL from a lattice
# around $q$.
#
# You will see the ELBO rise with $\log p(x)$ just above it, and between them the KL. It is small
# from the start, for an untrained decoder ignores $z$, and then the posterior is the prior; while
# the model moves the guide has to run after it, and need not keep step; as the learning rate
# falls, it does.

# %%
from pyrovae.optimise import cosine

digits = data.load("digits", binarize="threshold")
some = digits.test[:ROWS]
vae = build(data_shape=(8, 8), latent_dim=2, hidden=(32,), net_options={"activation": "tanh"})
vae.double()
recorder = evidence.IdentityRecorder(vae.model, vae.guide, some, every=max(1, EPOCHS // 10))
options = {"batch_size": 64, "lr": 3e-3, "schedule": cosine}
history = fit(vae.model, vae.guide, digits.train, epochs=EPOCHS, callbacks=[recorder], **options)
plots.duality(recorder)

# %% [markdown]
# The same in numbers, means over the images. The last column is what the identity misses, at
# worst.


# %%
def numbers(recorder):
    """The first, second, middle and last measurement."""
    rows = {}
    for epoch, found in zip(recorder.epochs, recorder.identities, strict=True):
        terms = [t.mean().item() for t in (found.log_evidence, found.elbo, found.kl)]
        rows[epoch] = [*terms, f"{found.residual.abs().max():.0e}"]
        assert (found.residual.abs() < 1e-6).all()
    columns = ["log p(x)", "ELBO", "KL(q || p(z|x))", "largest residual"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("epoch")
    return table.iloc[[0, 1, len(table) // 2, -1]].round(4)


numbers(recorder)

# %% [markdown]
# The two movements can be told apart. Keep the trained model, frozen, give it a new guide that
# knows nothing, and train that guide alone. $\log p(x)$ does not see the guide, so it cannot move:
# you will see a level line, and the ELBO climbing to it from far below.

# %%
from pyrovae import VAE, nets, posteriors

vae.likelihood.requires_grad_(False)
warnings.filterwarnings("ignore", message=".*requires_grad=False")  # Pyro tells of frozen tensors
net = nets.mlp(hidden=(32,), activation="tanh")
torch.manual_seed(0)
fresh = posteriors.MeanFieldNormal(data_shape=(8, 8), latent_dim=2, net=net)
pair = VAE(vae.prior, vae.likelihood, fresh)
guided = evidence.IdentityRecorder(pair.model, pair.guide, some)
fit(pair.model, pair.guide, digits.train, epochs=EPOCHS // 4, callbacks=[guided], **options)
figure = plots.duality(guided)
figure.axes[0].autoscale(axis="y")  # the whole climb
figure

# %% [markdown]
# And you will see the ELBO gain exactly what the KL loses.

# %%
before, after = guided.identities[0], guided.identities[-1]
gain, loss = (after.elbo - before.elbo).mean(), (before.kl - after.kl).mean()
print(f"the ELBO gained {gain:.6f} nats, the KL lost {loss:.6f}")
assert torch.allclose(after.log_evidence, before.log_evidence, atol=1e-9)
assert torch.allclose(after.elbo - before.elbo, before.kl - after.kl, atol=1e-6)
numbers(guided)

# %% [markdown]
# That is the whole of it: maximising the ELBO over the guide *is* minimising KL$(q\|p(z|x))$, the
# reverse direction of section 2; over the model, it is maximum likelihood, as nearly as the guide
# allows. Hence *variational* autoencoder.
#
# ---
# The sizes of this run: the small ones if and only if it is a smoke run.

# %%
assert SMOKE == (len(history) < 10) == (len(score) < 10_000) == (len(before.kl) < 4)
print(f"smoke run: {SMOKE}; {len(score):,} draws, {len(history)} epochs, {len(before.kl)} images")
