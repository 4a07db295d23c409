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
# # Swap the prior
#
# A VAE's prior $p(z)$ is one part of three, and swapping it is one word. Here four priors stand on
# the same encoder and decoder, and what each is worth is measured: on held-out images, with
# errors, and the errors of *differences*.
#
# 1. What a prior is up against: the aggregate posterior
# 2. Four priors in the plane, where everything can be integrated
# 3. Four priors in ten dimensions
# 4. The evidence, by importance samples, and how far to trust it
# 5. The table: paired differences, best first
# 6. Samples side by side
# 7. What VampPrior's pseudo-inputs are
#
# What the ELBO is, and why, is in `01_why_vaes_are_variational`. The flow prior needs zuko:
# `pip install 'pyrovae[flows]'`. Everything is in nats.

# %%
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from pyrovae import build, data, diagnostics, evidence, fit, log_weights
from pyrovae.distributions import MixtureOfNormals
from pyrovae.evidence.pareto import khat
from pyrovae.optimise import cosine
from pyrovae.training.comparison import paired

# %%
# %matplotlib inline
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
COLOURS = {"standard-normal": "#8c8c8c", "mixture-of-normals": "#0b5fa5", "vamp-prior": "#c8553d"}
COLOURS |= {"flow-prior": "#3a7d44", "standard-normal, seed 1": "#222222"}

# %% [markdown]
# The sizes of this run, all in one place. The images are MNIST where the environment variable
# `PYROVAE_DATA` names a folder that has it (this record is of such a run), and otherwise the small
# digits that scikit-learn carries.

# %% tags=["parameters"]
SMOKE = bool(os.environ.get("PYROVAE_SMOKE"))
MNIST = not SMOKE and Path(os.environ.get("PYROVAE_DATA", "nowhere"), "MNIST", "raw").is_dir()
SET, IMAGES, TESTED, HIDDEN = ("mnist", 15_000, 500, 300) if MNIST else ("digits", 1400, 150, 100)
EPOCHS, PLANE_EPOCHS = (10, 8) if MNIST else (80, 80)
PARTICLES, AGGREGATED, SIDE, COMPONENTS = 1000, 2000, 240, 100
if SMOKE:
    EPOCHS, PLANE_EPOCHS, TESTED, PARTICLES, SIDE, COMPONENTS = 2, 2, 40, 100, 80, 10

# %% [markdown]
# The images. Grey pixels are drawn as 0 or 1 with the probability that the grey says: training
# images afresh in every batch, the others once.

# %%
loaded = data.load(SET, binarize="dynamic")
train, held_out, test = loaded.train[:IMAGES], loaded.validation[:1000], loaded.test[:TESTED]
labels = loaded.labels["test"][:TESTED]
settings = {"batch_size": 100, "lr": 2e-3, "schedule": cosine, "transform": loaded.transform}
print(f"{SET}: training images {tuple(train.shape)}, test images {tuple(test.shape)}")

# %% [markdown]
# And the priors, each one word. The encoder and the decoder are the same throughout: one hidden
# layer, a normal $q(z|x)$ with a diagonal covariance, Bernoulli pixels.
#
# | word | $p(z)$ |
# |---|---|
# | `standard-normal` | $\mathcal N(0, I)$ |
# | `mixture-of-normals` | $\sum_k w_k\,\mathcal N(m_k, \operatorname{diag} s_k^2)$, all learnt |
# | `vamp-prior` | $\frac1K \sum_k q(z\vert u_k)$, pseudo-inputs $u_k$ learnt |
# | `flow-prior` | $\mathcal N(f(z); 0, I)\,\lvert\det df/dz\rvert$, $f$ of learnt splines |
#
# (Kingma & Welling 2014; Tomczak & Welling 2018 for the two mixtures; Durkan et al. 2019.)

# %%
WORDS = {
    "standard-normal": {},
    "mixture-of-normals": {"num_components": COMPONENTS},
    "vamp-prior": {"num_components": COMPONENTS},
    "flow-prior": {"flow": "neural-spline:2"},
}


def trained(prior, latent_dim, epochs, seed=0):
    """Return a pair with that prior, and the history of its training."""
    made = {"data_shape": loaded.data_shape, "latent_dim": latent_dim, "hidden": (HIDDEN,)}
    vae = build(prior=prior, prior_options=WORDS[prior], seed=seed, **made)
    pair = vae.model, vae.guide
    history = fit(*pair, train, validation=held_out, epochs=epochs, seed=seed, **settings)
    return vae.requires_grad_(False), history  # from here on it is measured


# %% [markdown]
# ## 1. What a prior is up against: the aggregate posterior
#
# The prior enters the ELBO in one place, KL$(q(z|x)\|p(z))$. Over $N$ training images its mean
# comes apart ("ELBO surgery", Hoffman & Johnson 2016):
#
# $$\frac1N \sum_n \mathrm{KL}\big(q(z|x_n)\,\|\,p(z)\big) \;=\;
# \underbrace{I(n; z)}_{\text{no prior in it}} \;+\; \mathrm{KL}\big(q(z)\,\|\,p(z)\big),
# \qquad q(z) = \frac1N \sum_n q(z|x_n)$$
#
# $q(z)$ is the *aggregate posterior*: where the codes of all the images lie. $I(n; z)$ is what a
# code tells of which image it came from, at most $\log N$. What is left is the price of the prior,
# and it is zero for one prior only: $p(z) = q(z)$. With $\mathcal N(0, I)$ the encoder is paid to
# make its $N$ posteriors add up to a normal, against what reconstruction asks of it.
#
# In two dimensions that can be looked at. Four pairs, one for each prior, for the picture:

# %%
plane = {prior: trained(prior, 2, PLANE_EPOCHS)[0] for prior in WORDS}
x = data.binarize(train[:AGGREGATED], torch.Generator().manual_seed(0))  # the N images of q(z)

# %% [markdown]
# $q(z)$ is a mixture of $N$ normals, so its density can be had anywhere: at draws of itself, and
# on a lattice over the part of the plane where the codes lie.


# %%
def lattice(vae):
    """Return points (SIDE, SIDE, 2) that cover all codes, and the area of a cell."""
    q = vae.encode(x).base_dist
    low, high = (q.loc - 5 * q.scale).amin(0), (q.loc + 5 * q.scale).amax(0)
    sides = [torch.linspace(a, b, SIDE) for a, b in zip(low, high, strict=True)]
    area = ((high - low) / (SIDE - 1)).prod()
    return torch.stack(torch.meshgrid(*sides, indexing="xy"), -1), area


def log_aggregate(vae, z):
    """log q(z) for z (..., 2), in parts that fit into memory."""
    q = vae.encode(x).base_dist
    mixture = MixtureOfNormals(q.loc, q.scale, torch.zeros(len(x)))
    parts = [mixture.log_prob(part) for part in z.reshape(-1, 2).split(2000)]
    return torch.cat(parts).reshape(z.shape[:-1])


# %% [markdown]
# You will see, for the standard normal: the prior; the aggregate posterior; and where the one has
# mass that the other lacks. Red: a draw from the prior lands where no image's code lies, and the
# decoder was never trained to make an image of it. Blue: codes that the prior calls unlikely.

# %%
codes = {prior: lattice(vae) for prior, vae in plane.items()}
log_q = {prior: log_aggregate(vae, codes[prior][0]) for prior, vae in plane.items()}
z, area = codes["standard-normal"]
p, q = plane["standard-normal"].prior().log_prob(z).exp(), log_q["standard-normal"].exp()
print(f"the lattice's sum of q(z): {(q * area).sum():.5f}")
assert ((q * area).sum() - 1).abs() < 1e-2

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
shown = {"prior p(z)": p, "aggregate posterior q(z)": q, "q(z) - p(z)": q - p}
for axes, (title, values) in zip(panels, shown.items(), strict=True):
    cmap, low = ("RdBu", -0.15) if "-" in title else ("Greys", 0)
    image = axes.pcolormesh(z[0, :, 0], z[:, 0, 1], values, cmap=cmap, vmin=low, vmax=0.15)
    axes.set(title=title, xlabel="z[0]", aspect="equal")
    axes.locator_params(nbins=5)
    if title != "prior p(z)":
        figure.colorbar(image, ax=axes, extend="both" if low else "max", shrink=0.85)
panels[0].set(ylabel="z[1]")
plt.show()

# %% [markdown]
# ## 2. Four priors in the plane
#
# A prior with parameters meets the codes half-way. You will see the means of $q(z|x)$ of test
# images, coloured by digit, on the contours of each $p(z)$ (from dark, where it is highest, to a
# thousandth of that). The standard normal is what it is; the others have gone where the
# codes are, and the codes where they are.

# %%
figure, panels = plt.subplots(2, 2, figsize=(9, 8), layout="constrained")
for axes, (prior, vae) in zip(panels.flat, plane.items(), strict=True):
    z, _ = codes[prior]
    log_p = vae.prior().log_prob(z)
    below = (log_p - log_p.max()) / math.log(10)
    levels = [-3, -2.5, -2, -1.5, -1, -0.5, 0]
    axes.contourf(z[0, :, 0], z[:, 0, 1], below, levels, cmap="Greys", vmin=-4, vmax=3)
    means = vae.encode(test).mean
    for digit in range(10):
        axes.scatter(*means[labels == digit].T, s=9, color=f"C{digit}", label=str(digit), lw=0)
    axes.set(title=prior, xlabel="z[0]", ylabel="z[1]")
handles = axes.get_legend_handles_labels()
figure.legend(*handles, loc="outside right center", frameon=False, markerscale=2, title="digit")
plt.show()

# %% [markdown]
# Now the surgery, in numbers: `elbo_surgery` draws from each $q(z|x_n)$ and scores the draws under
# all the others. The last column is KL$(q(z)\|p(z))$ from the lattice, with no draw in it. You will
# see both agree, and what each prior pays.

# %%
table = pd.DataFrame()
for prior, vae in plane.items():
    cut = diagnostics.elbo_surgery(vae.model, vae.guide, x)
    terms = evidence.summarise(vae.model, vae.guide, x, num_particles=4)
    ratio = log_q[prior] - vae.prior().log_prob(codes[prior][0])
    by_lattice = (log_q[prior].exp() * ratio * codes[prior][1]).sum()
    table.loc[prior, "E log p(x|z)"] = f"{terms.reconstruction.mean():.2f}"
    table.loc[prior, "I(n; z)"] = f"{cut.mutual_information:.3f}"
    price = f"{cut.aggregate_kl:.3f} +- {cut.aggregate_kl_se:.3f}"
    table.loc[prior, ["KL(q(z) || p(z))", "by lattice"]] = price, f"{by_lattice:.3f}"
    table.loc[prior, "ELBO"] = f"{terms.reconstruction.mean() - cut.kl:.2f}"
    assert abs(cut.aggregate_kl - by_lattice) < 4.5 * cut.aggregate_kl_se + 0.01
print(f"N = {len(x):,}, log N = {math.log(len(x)):.2f}")
table

# %% [markdown]
# In two dimensions $\log p(x)$ is an integral over the lattice, with nothing left to chance but
# the choice of images. You will see it for the test images, and the differences from the best with
# *paired* errors: the standard error of the mean of $\log p_a(x_n) - \log p_b(x_n)$. What makes
# one image harder than another is common to both priors and cancels.


# %%
def integrated(vae, z, area):
    """Return log p(x) of the test images, and by a lattice of half as many points a side."""
    logits = vae.decode(z.reshape(-1, 2)).base_dist.logits.flatten(1)
    of_ones = test.flatten(1) @ logits.T  # log p(x|z) = sum_i x_i l_i - log(1 + exp(l_i))
    log_joint = of_ones - (1 + logits.exp()).log().sum(1) + vae.prior().log_prob(z).flatten()
    coarse = log_joint.reshape(-1, SIDE, SIDE)[:, ::2, ::2].flatten(1)
    whole = log_joint.logsumexp(1) + area.log()
    return whole, coarse.logsumexp(1) + (4 * area).log()


# %%
def ranked(log_evidence):
    """Return a table of log p(x), each (N,), best first, with paired differences."""
    table = pd.DataFrame()
    order = sorted(log_evidence, key=lambda name: -log_evidence[name].mean())
    best = log_evidence[order[0]]
    for name in order:
        value, (difference, error) = log_evidence[name], paired(log_evidence[name], best)
        plain = (value.var() + best.var()).div(len(best)).sqrt()
        table.loc[name, "log p(x)"] = f"{value.mean():.2f} +- {value.std() / len(best) ** 0.5:.2f}"
        table.loc[name, "less the best"] = f"{difference:.2f} +- {error:.2f}" if error else "best"
        table.loc[name, "its error if unpaired"] = f"{plain:.2f}" if error else ""
    return table


# %%
exact = {}
for prior, vae in plane.items():
    exact[prior], coarse = integrated(vae, *codes[prior])
    change = (exact[prior] - coarse).mean()
    print(f"{prior:>18}: the mean by half as many points a side is {change:.0e} off")
    assert change.abs() < 0.05
ranked(exact)

# %% [markdown]
# ## 3. Four priors in ten dimensions
#
# The same with ten latent dimensions. The error of a paired difference is over images: it says
# nothing of what another seed would have given. So the standard normal is trained twice, and the
# difference of the two is the yardstick: what two runs differ by when nothing differs but the
# seed. You will see the ELBO on held-out images after each epoch.

# %%
pairs, histories = {}, {}
for name in COLOURS:
    prior, _, seed = name.partition(", seed ")
    pairs[name], histories[name] = trained(prior, 10, EPOCHS, seed=int(seed or 0))

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, history in histories.items():
    elbo = [-loss for loss in history["validation_loss"]]
    style = "--" if "seed" in name else "-"
    axes.plot(history["epoch"], elbo, style, color=COLOURS[name], label=name)
settled = [-h["validation_loss"][len(h) // 4] for h in histories.values()]
axes.set(xlabel="epoch", ylabel="ELBO of held-out images, nats", ylim=(min(settled) - 3, None))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 4. The evidence, by importance samples
#
# No lattice reaches ten dimensions. The mean of $K$ weights $w = p(x, z)/q(z|x)$, $z \sim q$, is
# $p(x)$ on average, and its logarithm is a lower bound on average (Burda et al. 2016), the ELBO at
# $K = 1$. How far below depends on the guide: where it is narrower than the posterior, the weights
# have a tail so heavy that no number of draws is enough. Pareto $\hat k$ measures the tail
# (Vehtari et al. 2024): above 0.7 the estimate is not to be trusted, and remains a bound.
#
# You will see, on the left, the bound still rising at the largest $K$; on the right, the $\hat k$
# of the test images, most of them above 0.7. So none of these numbers is $\log p(x)$. What they
# are good for is the question below: does the *order* of the priors depend on $K$?

# %%
log_w = {}  # (K, N) for each pair
for name, vae in pairs.items():
    log_w[name] = log_weights(vae.model, vae.guide, test, num_particles=PARTICLES)
k_hat = {name: khat(w) for name, w in log_w.items()}


def bound(w, k):
    """log (1/k) sum of k weights, (N,): a mean over as many groups of k as there are."""
    groups = w[: len(w) // k * k].reshape(-1, k, w.shape[1])
    return (groups.logsumexp(1) - math.log(k)).mean(0)


# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
counts = [k for k in (1, 3, 10, 30, 100, 300, 1000) if k <= PARTICLES]
for name, w in log_w.items():
    style = "--" if "seed" in name else "-"
    values = [bound(w, k).mean() for k in counts]
    left.plot(counts, values, "." + style, color=COLOURS[name], label=name)
    share = torch.arange(1, len(test) + 1) / len(test)
    right.step(k_hat[name].sort().values, share, style, where="post", color=COLOURS[name])
right.axvline(0.7, color="#222222", linewidth=0.8, linestyle=":")
left.set(xscale="log", xlabel="draws K", ylabel="bound on log p(x), nats")
left.legend(frameon=False, fontsize=7.5)
right.set(xlabel="Pareto k-hat", ylabel="share of test images below", xlim=(-0.2, 1.8))
right.set_xticks([0, 0.35, 0.7, 1.05, 1.4, 1.75])
plt.show()

# %% [markdown]
# The same differences at every $K$: you will see each prior's bound less that of the standard
# normal (seed 0), paired over the images. A difference that held at one $K$ and not at another
# would be one of guides, not of priors.

# %%
table = pd.DataFrame()
for name in list(log_w)[1:]:
    for k in [k for k in (1, 10, 100, 1000) if k <= PARTICLES]:
        difference, error = paired(bound(log_w[name], k), bound(log_w["standard-normal"], k))
        table.loc[name, f"K = {k}"] = f"{difference:+.2f} +- {error:.2f}"
table

# %% [markdown]
# ## 5. The table: paired differences, best first
#
# You will see what `pyrovae compare` prints for runs on disk: $\log p(x)$, at least, by all draws;
# the difference from the best with its paired error; beside it the error that one would have
# without pairing. Then the columns of trust: how many images have $\hat k < 0.7$, and the median
# effective sample size. And the price of the prior again, of the same $N$ images; in ten dimensions
# nearly every code tells which image it came from, so that $I(n; z)$ stands at its ceiling
# $\log N$, and part of this KL is that $N$ images are few.

# %%
evidences = {name: bound(w, len(w)) for name, w in log_w.items()}
table = ranked(evidences)
for name, w in log_w.items():
    ess = (2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp()
    table.loc[name, "ELBO"] = f"{w.mean():.2f}"
    table.loc[name, "k-hat < 0.7"] = f"{(k_hat[name] < 0.7).double().mean():.0%}"
    table.loc[name, "ESS"] = f"{ess.median():.0f}"
    cut = diagnostics.elbo_surgery(pairs[name].model, pairs[name].guide, x)
    table.loc[name, "KL(q(z) || p(z))"] = f"{cut.aggregate_kl:.2f}"
    table.loc[name, "parameters"] = f"{sum(p.numel() for p in pairs[name].parameters()):,}"
    assert (evidences[name] > w.mean(0) - 1e-3).all()  # as Jensen has it, draw by draw
table

# %%
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
best = evidences[table.index[0]]
for row, name in enumerate(table.index[::-1]):
    difference, error = paired(evidences[name], best)
    plain = ((evidences[name].var() + best.var()) / len(best)).sqrt()
    if error:
        axes.errorbar(difference, row, xerr=2 * plain, color="#cccccc", elinewidth=5)
    axes.errorbar(difference, row, xerr=2 * error, fmt="o", color=COLOURS[name], capsize=3)
axes.set_yticks(range(len(table)), table.index[::-1])
axes.set(xlabel="log p(x) less that of the best, nats; bars of 2 errors, grey: unpaired")
plt.show()

# %% [markdown]
# ## 6. Samples side by side
#
# $z$ drawn from each prior, and the decoder's mean $\mathbb E[x|z]$. You will see test images in
# the first row, then each prior's. The standard normal's draws land in its holes more often: two
# digits in one, or none.


# %%
def mosaic(images, columns=20):
    """Return images (n, H, W) as one, with a gap between them."""
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1))
    return torch.cat([torch.cat(list(row), 1) for row in padded.split(columns)])


figure, panels = plt.subplots(5, 1, figsize=(9, 5.6), layout="constrained")
shown = {"test images": test[:40]} | {name: pairs[name].sample(40, mean=True) for name in WORDS}
for axes, (name, images) in zip(panels, shown.items(), strict=True):
    axes.imshow(mosaic(images), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## 7. What VampPrior's pseudo-inputs are
#
# If the best prior is the aggregate posterior, why not take it? It costs $N$ encodings a step, and
# it knows every training image by heart. VampPrior takes the same mixture over $K$ inputs that are
# learnt (Tomczak & Welling 2018). You will see some of them, and below each what it stands for:
# $\mathbb E[x|z]$ for $z \sim q(z|u_k)$. They need not look like digits: nothing asks that of them
# but the encoder, which must send them to where codes lie.

# %%
vae = pairs["vamp-prior"]
torch.manual_seed(0)
u = vae.prior.pseudo_inputs.clamp(*vae.prior.clamp)[:20]
shown = {"pseudo-inputs": u, "E[x|z], z from\nq(z|pseudo-input)": vae.reconstruct(u)}
figure, panels = plt.subplots(2, 1, figsize=(9, 1.6), layout="constrained")
for axes, (name, images) in zip(panels, shown.items(), strict=True):
    axes.imshow(mosaic(images), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# And in the plane of section 2. You will see the means of $q(z|u_k)$ on the means of test images.

# %%
vae = plane["vamp-prior"]
q = vae.encode(vae.prior.pseudo_inputs.clamp(*vae.prior.clamp)).base_dist
figure, axes = plt.subplots(figsize=(6, 4.4), layout="constrained")
axes.scatter(*vae.encode(test).mean.T, s=10, color="#bbbbbb", label="test images", lw=0)
axes.scatter(*q.loc.T, s=16, color=COLOURS["vamp-prior"], label="pseudo-inputs", lw=0)
axes.set(xlabel="z[0]", ylabel="z[1]", title="means of q(z|x) and of q(z|u)")
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
spread = vae.prior.pseudo_inputs.std(0).mean()
print(f"{len(q.loc)} pseudo-inputs, a pixel's standard deviation over them {spread:.2f}")

# %% [markdown]
# ---
# What this says, and what it does not. KL$(q(z)\|p(z))$ is what the standard normal pays and a
# learnt prior can save. In the plane it was under a nat, and saving it did not decide which pair
# had the higher $\log p(x)$: two numbers tell little of an image, and how well encoder and decoder
# used them mattered more. In ten dimensions the price is higher, and there the learnt priors are
# ahead by nats, at every $K$, and by more than the difference in price: encoder and decoder
# train otherwise too. (On scikit-learn's small digits, where this notebook goes without
# MNIST, the four come out within about two errors of one another.) All of this is *one seed each*:
# the paired error is over images alone, and the two runs of the standard normal show how far a seed
# moves the figure. No setting was tuned for any prior, the training is short, and the bounds of
# section 4 lie below $\log p(x)$ by an amount that nobody knows.
#
# The sizes of this run: the small ones if and only if it is a smoke run.

# %%
assert SMOKE == (len(histories["vamp-prior"]) < 10) == (len(test) < 100) == (PARTICLES < 500)
print(f"smoke run: {SMOKE}; {SET}, {EPOCHS} epochs, {len(test)} images, {PARTICLES} draws each")
