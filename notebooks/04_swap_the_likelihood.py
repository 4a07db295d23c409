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
# # Swap the likelihood
#
# $p(x|z)$ says what kind of thing a datum is: bits, levels, counts, real numbers, or a row of a
# table with some of each. Swapping it is one word; comparing what comes out is not always allowed.
#
# 1. Grey pixels under Bernoulli, and why that is no density
# 2. A density at lattice points bounds nothing
# 3. A normal, with each choice of its variance
# 4. Levels: Binomial, Categorical, discretised logistic
# 5. Bits per dimension, in one table, and what may not stand in it
# 6. Counts: overdispersed, with extra zeros, and a truth that is known
# 7. A table of mixed columns, with holes
#
# Everything is in nats, unless it says bits. The digits are scikit-learn's 1,797, of $8 \times 8$
# pixels; a pixel is a count from 0 to 16, of the ink in a block of $4 \times 4$.

# %%
import math
import os

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from sklearn.datasets import load_wine

from pyrovae import build, data, evidence, fit, log_weights, pairs
from pyrovae.distributions import ContinuousBernoulli
from pyrovae.optimise import cosine
from pyrovae.training.comparison import paired

# %%
# %matplotlib inline
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
torch.set_default_dtype(torch.float64)  # so that "equal" can mean equal to ten digits
K = range(17)  # the levels
BLUE, RED, GREEN, GREY, INK = "#0b5fa5", "#c8553d", "#3a7d44", "#8c8c8c", "#222222"

# %% [markdown]
# The sizes of this run, all in one place.

# %% tags=["parameters"]
SMOKE = bool(os.environ.get("PYROVAE_SMOKE"))
EPOCHS, PARTICLES, ROWS = (2, 50, 400) if SMOKE else (60, 500, 4000)

# %% [markdown]
# The digits three times over, split alike: grey values $k/16$ in $[0, 1]$; the levels $k$
# themselves; and dequantised, $(k + u)/17$ with $u \sim U(0, 1)$, of which more below.

# %%
f64 = {"dtype": torch.float64}
grey, levels = data.load("digits", **f64), data.load("digits", values="levels", **f64)
noisy = data.load("digits", dequantize=True, **f64)
assert torch.equal(grey.test * 16, levels.test)
assert torch.equal((noisy.test * 17).floor(), levels.test)
print(f"{len(grey.train)} training images, {len(grey.test)} test images")

# %% [markdown]
# What every likelihood below shares: the prior, the encoder, the decoder's hidden layer, and how it
# is trained.


# %%
SETTINGS = {"batch_size": 64, "lr": 3e-3, "schedule": cosine}


def built(likelihood, source=noisy, **options):
    """Return a pair with that likelihood; its encoder sees values of about [0, 1]."""
    seen = {"input_scale": 1 / 16} if source is levels else {}
    return build(
        data_shape=(8, 8), latent_dim=10, hidden=(100,), likelihood=likelihood,
        likelihood_options=options, posterior_options=seen,
    )  # fmt: skip


# %%
def trained(likelihood, source=noisy, epochs=EPOCHS, callback=None, **options):
    """Return it trained; callback(pair) after each epoch."""
    vae = built(likelihood, source, **options)
    pair, draw = (vae.model, vae.guide), source.transform
    after = [lambda *_: callback(vae)] if callback else []
    settings = SETTINGS | {"validation": source.validation, "transform": draw, "callbacks": after}
    fit(*pair, source.train, epochs=epochs, **settings)
    return vae.requires_grad_(False)  # from here on it is measured


# %% [markdown]
# ## 1. Grey pixels under Bernoulli, and why that is no density
#
# A great many VAEs score a grey pixel $x \in [0, 1]$ by what would be right for $x \in \{0, 1\}$,
# binary cross-entropy. As a function of $x$, the thing that they score with is no density:
#
# $$\int_0^1 p^x (1 - p)^{1 - x}\,dx = \frac1{C(p)} \le \frac12,
# \qquad C(p) = \frac{2 \operatorname{artanh}(1 - 2p)}{1 - 2p}$$
#
# $C(p)$ is the constant of the *continuous Bernoulli* (Loaiza-Ganem & Cunningham 2019): what comes
# of dividing by the integral. You will see the integral by the trapezoid rule, against the
# library's constant.

# %%
x, p = torch.linspace(0, 1, 4001), torch.linspace(0.004, 0.996, 249)
score = p[:, None] ** x * (1 - p[:, None]) ** (1 - x)
integral = torch.trapezoid(score, x)
density = ContinuousBernoulli(probs=p[:, None]).log_prob(x).exp()
log_constant = (density / score).log().mean(1)
print(f"log integral + log C(p): at most {(integral.log() + log_constant).abs().max():.0e}")
areas = torch.trapezoid(density, x)
print(f"integral of the score at most {integral.max():.4f}, of the density {areas.mean():.6f}")
assert (integral.log() + log_constant).abs().max() < 1e-5 and integral.max() < 0.5 + 1e-9

# %% [markdown]
# You will see, from the left: the scores, whose areas should be 1; the areas; and the mean of $x$
# under the score divided by its area. The last is what goes wrong without a word: the network's
# $p$ is taken for the grey value that the model expects, and it is not, except at 0, 1/2 and 1.

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for value, colour in ((0.02, BLUE), (0.2, GREEN), (0.5, INK), (0.98, RED)):
    row = (p - value).abs().argmin()
    panels[0].plot(x, score[row], color=colour, label=f"p = {value}: area {integral[row]:.2f}")
panels[0].set(xlabel="x", title="$p^x (1 - p)^{1 - x}$", ylim=(0, 1.6))
panels[0].legend(frameon=False, fontsize=7.5, loc="upper center", ncols=2)
panels[1].plot(p, integral, color=BLUE, label="area, 1 / C(p)")
panels[1].axhline(1, color=GREY, linestyle=":", label="of a density")
panels[1].set(xlabel="p", ylim=(0, 1.1), title="its integral over [0, 1]")
panels[1].legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.7))
panels[2].plot(p, torch.trapezoid(density * x, x), color=BLUE, label="E[x]")
panels[2].plot(p, p, color=GREY, linestyle=":", label="p")
panels[2].set(xlabel="p", title="mean of x once normalised")
panels[2].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The library refuses: you will see what it says of grey pixels under Bernoulli.

# %%
vae = built("bernoulli")
try:
    fit(vae.model, vae.guide, grey.train, epochs=1)
except ValueError as error:
    print(error)
else:
    raise AssertionError("grey pixels were taken for bits")

# %% [markdown]
# What does it cost to do it all the same? Two pairs of the same networks and the same first
# weights, trained by the same loop: one by the score, with Pyro's validation off, the other by the
# density. The data are dequantised, so that a density has something to be a density of.

# %%
wrong, right = built("continuous-bernoulli"), built("continuous-bernoulli")


def scored(x):
    """The model of many a tutorial: grey pixels under Bernoulli, unchecked."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", wrong.prior())
        p = dist.Bernoulli(logits=wrong.likelihood.net(z), validate_args=False)
        pyro.sample("x", p.to_event(2), obs=x)


# %%
for model, guide in ((scored, wrong.guide), (right.model, right.guide)):
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(noisy.train)).split(64):
            svi.step(noisy.transform(noisy.train[rows]))

# %% [markdown]
# Now both are read as what they could be, continuous Bernoullis, and their $\log p(x)$ is measured
# on the test images. You will see the difference with its paired error: the standard error of the
# mean of $\log p_a(x_n) - \log p_b(x_n)$ over images. (One seed each, here and below.)


# %%
def measured(vae, x):
    """Return the ELBO, its terms, and log p(x) by importance samples with their k-hat."""
    options = {"num_particles": PARTICLES, "with_khat": True}
    return evidence.summarise(vae.model, vae.guide, x, **options)


by_score = measured(wrong.requires_grad_(False), noisy.test)
by_density = measured(right.requires_grad_(False), noisy.test)
loss, se = paired(by_score.evidence.log_evidence, by_density.evidence.log_evidence)
print(f"log p(x), trained by the density: {by_density.evidence.log_evidence.mean():.2f} nats")
print(f"trained by the score: {loss:.2f} +- {se:.2f} nats less")

# %% [markdown]
# ## 2. A density at lattice points bounds nothing
#
# Pixels $k/16$ are real numbers of a kind, and one may give them a normal. But its density has no
# ceiling: where a pixel is always 0, $\sigma \to 0$ sends $\log p(x)$ to infinity, and with it any
# claim that a higher figure means a better model. Adding noise that fills the gap between levels
# takes care of it: $y = (k + u)/17$, and then (Theis et al. 2016), by Jensen's inequality,
#
# $$\mathbb E_u[\log p(y)] - D \log 17 \;\le\; \log \int_{\text{cell of } k} p(y)\,dy
# \;\le\; 0$$
#
# so that the mean log-density, less $\log 17$ a dimension, bounds the log-probability of the
# *levels*. You will see the ELBO of a normal with a $\sigma$ for each pixel, as the floor under
# those $\sigma$ is lowered: on the lattice it climbs, by up to $\log 10$ a step for each pixel that
# never changes, as far as training finds those pixels' value; on dequantised images it stays.


# %%
def fit_variance(vae, source=noisy):
    """Set sigma to its optimum given the rest: section 3 tells of it."""
    draw, generator = source.transform, torch.Generator().manual_seed(0)
    return pairs.fit_variance(vae, draw(source.train, generator) if draw else source.train)


def test_elbo(source, floor):
    """Train a normal of a sigma for each pixel, above that floor, to the end."""
    vae = built("normal", source, variance=f"per-dimension:{floor}")
    vae.likelihood.start_at_mean(source.train)
    after = {"callbacks": [lambda *_: fit_variance(vae, source)], "transform": source.transform}
    fit(vae.model, vae.guide, source.train, epochs=EPOCHS, **SETTINGS, **after)
    fit_variance(vae, source)
    return log_weights(vae.model, vae.guide, source.test, num_particles=20).mean().item()


# %%
floors = [0.1, 0.01, 0.001, 0.0001]
lattice, dequantised = ([test_elbo(source, f) for f in floors] for source in (grey, noisy))
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.plot(floors, lattice, ".-", color=RED, label="on the lattice k / 16")
axes.plot(floors, dequantised, ".-", color=BLUE, label="dequantised, (k + u) / 17")
axes.set(xscale="log", xlabel="floor under sigma", ylabel="test ELBO, nats an image")
axes.invert_xaxis()
axes.legend(frameon=False, fontsize=8)
plt.show()
constant = (grey.train.std(0) == 0).sum()
print(f"pixels that are the same in every training image: {constant}")
assert SMOKE or lattice[3] - lattice[1] > 3 > abs(dequantised[3] - dequantised[1])

# %% [markdown]
# ## 3. A normal, with each choice of its variance
#
# $$-\log p(x|z) = \sum_i \frac{(x_i - \mu_i(z))^2}{2\sigma_i^2} + \tfrac12 \log 2\pi\sigma_i^2$$
#
# With $\sigma$ fixed this is squared error, scaled, up to a constant (`01`, section 5), and
# $\sigma$ decides what an error weighs against the KL. At $\sigma = 1$, for pixels in $[0, 1]$, the
# weight is next to nothing: getting an image exactly right instead of showing the mean image
# earns one or two nats, and telling which image it is costs more. So the posterior is left at
# the prior, and every picture is the same blur.
#
# The choices: `Fixed(sigma)`; `Shared()`, one $\sigma$ that is learnt; `PerDimension()`;
# `Predicted()`, $\sigma_i(z)$ by the network. The optimal shared one needs no gradient (Rybkin et
# al. 2021): given the rest of the pair it is the root mean squared error, which `fit_variance`
# sets; here it does so after every epoch. First, is it the optimum? You will see
# $\mathbb E_q \log p(x|z)$ on the training images, at that $\sigma$ and at others.

# %%
shared = trained("normal", callback=fit_variance, variance="shared")
best = fit_variance(shared)
x = noisy.transform(noisy.train, torch.Generator().manual_seed(0))
at = {}
for factor in (0.8, 0.9, 1.0, 1.1, 1.25):
    shared.likelihood.s.copy_((factor * best - shared.likelihood.variance.min_scale).log())
    at[factor] = measured(shared, x[:1000]).reconstruction.mean().item()
    print(f"sigma {factor * best:.4f}, {factor:.2f} of the optimum: {at[factor]:.3f} nats")
assert max(at, key=at.get) == 1 and torch.allclose(fit_variance(shared), best)

# %% [markdown]
# You will see each choice on the dequantised test images: the $\sigma$ (a mean, where there are
# many), how much the code tells of the image (KL), how far off the reconstruction is, and
# $\log p(x)$, with the share of images whose $\hat k < 0.7$, for which the importance samples are
# to be trusted (see `03`, section 4). A small $\sigma$ that is fixed is no cure: it is a guess.

# %%
choices = {"fixed:1": None, "fixed:0.3": None, "fixed:0.1": None, "shared": fit_variance}
choices |= {"per-dimension": fit_variance, "predicted": None}
normals = {
    name: shared if name == "shared" else trained("normal", callback=callback, variance=name)
    for name, callback in choices.items()
}

# %%
results, table = {}, pd.DataFrame()
for name, vae in normals.items():
    found = results[f"normal, {name}"] = measured(vae, noisy.test)
    z = vae.encode(noisy.test).sample()
    error = (vae.decode(z).mean - noisy.test).square().mean().sqrt()
    table.loc[name, "sigma"] = f"{vae.decode(z).base_dist.scale.mean():.3f}"
    table.loc[name, "KL"] = f"{found.kl.mean():.2f}"
    table.loc[name, "RMSE"] = f"{error:.4f}"
    table.loc[name, "log p(x)"] = f"{found.evidence.log_evidence.mean():.2f}"
    table.loc[name, "k-hat < 0.7"] = f"{(found.khat < 0.7).double().mean():.0%}"
table

# %% [markdown]
# And the pictures. You will see what the model makes of ten test images, and what it makes of
# draws from its prior: means $\mathbb E[x|z]$ both.


# %%
def mosaic(images):
    """Return images (n, H, W) side by side, with a gap between them."""
    return torch.cat(list(torch.nn.functional.pad(images, (0, 2, 1, 1))), 1)


# %%
def side_by_side(titles, rows):
    """Draw rows of two sets of images each, on the scale of their own kind of pixel."""
    figure, panels = plt.subplots(len(rows), 2, figsize=(10, 0.52 * len(rows) + 0.3))
    for pair, (name, sets) in zip(panels, rows.items(), strict=True):
        for axes, images in zip(pair, sets, strict=True):
            axes.imshow(mosaic(images), cmap="gray_r", vmin=0, vmax=16 if images.max() > 4 else 1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        pair[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    figure.subplots_adjust(left=0.2, right=0.99, top=0.93, bottom=0.01, wspace=0.04, hspace=0.1)
    plt.show()


# %%
some = noisy.test[:10]
rows = {"test images": (some, noisy.test[10:20])}
rows |= {n: (v.reconstruct(some), v.sample(10, mean=True)) for n, v in normals.items()}
side_by_side(("reconstructions", "samples"), rows)

# %% [markdown]
# ## 4. Levels: Binomial, Categorical, discretised logistic
#
# A pixel is a count $k$ of 0 to 16, and that is a thing one can give a probability to, with no
# noise and no $\log 17$:
#
# | word | $p(k)$ | free to be |
# |---|---|---|
# | `binomial` | $\binom{16}{k} p^k (1 - p)^{16 - k}$ | where it likes, its width follows |
# | `categorical` | softmax of 17 logits | anything |
# | `discretized-logistic` | a logistic variable, rounded | where and as wide as it likes |
# | `discretized-logistic-mixture` | three of those | and of several modes |

# %%
words = {"binomial": {"total_count": 16}, "categorical": {"num_levels": 17}}
words |= {"discretized-logistic": {"num_levels": 17}}
words |= {"discretized-logistic-mixture": {"num_levels": 17, "num_components": 3}}
discrete = {word: trained(word, levels, **options) for word, options in words.items()}

# %% [markdown]
# You will see, for one test image and three of its pixels, what each model says of them when it
# has seen the image: $\mathbb E_{q(z|x)}\,p(k|z)$. Each sums to 1; the dotted line is the truth. A
# binomial that is sure of its mean is still as wide as $\sqrt{16\,p(1 - p)}$; a categorical does
# not know that 2 lies between 1 and 3.

# %%
image, colours = levels.test[3], (BLUE, GREY, GREEN, RED)
MARK = {"boxstyle": "circle, pad=0.15", "facecolor": "white", "edgecolor": INK}
chosen = [(image - k).abs().flatten().argmin().item() for k in (2, 8, 16)]
z = {word: vae.encode(image[None]).sample((200,)) for word, vae in discrete.items()}

# %%
figure, panels = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
panels[0].imshow(image, cmap="gray_r")
panels[0].set(xticks=[], yticks=[])
for axes, pixel, letter in zip(panels[1:], chosen, "abc", strict=True):
    panels[0].text(pixel % 8, pixel // 8, letter, va="center", ha="center", bbox=MARK)
    for (word, vae), colour in zip(discrete.items(), colours, strict=True):
        p_x = vae.decode(z[word]).base_dist
        pmf = torch.stack([p_x.log_prob(torch.full((8, 8), k)).exp().mean((0, 1)) for k in K])
        axes.plot(K, pmf.flatten(1)[:, pixel], ".-", color=colour, label=word, lw=1)
        assert (pmf.sum(0) - 1).abs().max() < 1e-6
    axes.axvline(image.flatten()[pixel], color=INK, linestyle=":")
    axes.set(xlabel="level k", title=f"pixel {letter}", ylim=(0, None))
figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown]
# A model says what an image *is*, noise and all, while its mean says what it is on average. You
# will see both, for the same ten draws of $z$ from the prior: what is pale in the mean is a
# toss-up in the draw.

# %%
others = {word: trained(word) for word in ("continuous-bernoulli", "beta")}
others["laplace, predicted"] = trained("laplace", scale="predicted")
everything = discrete | others | {f"normal, {name}": vae for name, vae in normals.items()}
shown = ["binomial", "categorical", "discretized-logistic", "continuous-bernoulli", "beta"]
shown += ["normal, shared", "normal, predicted"]
rows = {"test images": (levels.test[:10], levels.test[10:20])}
for name in shown:
    rows[name] = everything[name].sample(10, mean=True), everything[name].sample(10)
side_by_side(("means E[x|z]", "draws of x"), rows)

# %% [markdown]
# ## 5. Bits per dimension, in one table
#
# All of these are models of one thing, $8 \times 8$ levels from 0 to 16, and can be told in one
# unit, bits a pixel:
#
# $$\frac{-\log p(k)}{D \log 2} \text{ for a probability of levels,} \qquad
# \frac{-\mathbb E_u \log p(y)}{D \log 2} + \log_2 17 \text{ for a density of } y = (k + u)/17$$
#
# The second is an upper bound of what the density gives the levels (section 2), so that densities
# are at a disadvantage, and one that wins has won. Two more rows keep us modest: a uniform over
# the levels, and each pixel's own histogram over the training images, with no $z$ at all.

# %%
log_mass = {}  # log p(k), or a bound on it, in nats, (N,)
for name, vae in everything.items():
    if name not in results:
        results[name] = measured(vae, levels.test if name in discrete else noisy.test)
    log_p = results[name].evidence.log_evidence
    log_mass[name] = log_p if name in discrete else log_p - 64 * math.log(17)
counts = torch.stack([(levels.train == k).sum(0) for k in K]) + 1.0
histogram = (counts / counts.sum(0)).log()
log_mass["(histograms)"] = histogram.gather(0, levels.test.long()).sum((1, 2))
log_mass["(uniform)"] = torch.full((len(levels.test),), -64 * math.log(17))

# %% [markdown]
# You will see bits a pixel, best first, with the standard error over images, and the difference
# from the best with its paired error. Where few $\hat k$ are below 0.7 the guide is too narrow, and
# then the figure is an upper bound of what the pair is worth, off by an unknown amount.

# %%
BIT = 64 * math.log(2)  # nats an image
table, order = pd.DataFrame(), sorted(log_mass, key=lambda name: -log_mass[name].mean())
for name in order:
    bits = -log_mass[name] / BIT
    difference, error = paired(bits, -log_mass[order[0]] / BIT)
    table.loc[name, "p is a"] = "mass" if name in discrete or "(" in name else "density"
    table.loc[name, "bits a pixel"] = f"{bits.mean():.3f} +- {bits.std() / len(bits) ** 0.5:.3f}"
    table.loc[name, "more than the best"] = f"{difference:.3f} +- {error:.3f}" if error else "best"
    if name in results:
        trusted = (results[name].khat < 0.7).double().mean()
        table.loc[name, ["KL", "k-hat < 0.7"]] = f"{results[name].kl.mean():.1f}", f"{trusted:.0%}"
table.fillna("")

# %%
figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for row, name in enumerate(order[::-1]):
    bits = -log_mass[name] / BIT
    colour = GREY if "(" in name else BLUE if name in discrete else RED
    axes.errorbar(bits.mean(), row, xerr=2 * bits.std() / len(bits) ** 0.5, fmt="o", color=colour)
axes.set_yticks(range(len(order)), order[::-1])
axes.set(xlabel="bits a pixel, with 2 standard errors over images; the fewer the better")
for colour, label in ((BLUE, "mass of levels"), (RED, "density, dequantised"), (GREY, "no z")):
    axes.plot([], [], "o", color=colour, label=label)
axes.legend(frameon=False, fontsize=8, loc="lower left")
axes.grid(axis="x", alpha=0.3)
plt.show()
bell = max(log_mass[f"normal, {name}"].mean() for name in normals)
assert SMOKE or log_mass["(histograms)"].mean() > bell

# %% [markdown]
# Histograms that know nothing of digits beat every normal here. It is not the latents that fail:
# pixels that are mostly 0 or 16 are spikes, at the ends of a bounded range, and no bell is a spike.
# The likelihoods that can put mass on the ends are the ones ahead.
#
# How much of a density's figure is the price of the noise? A normal's mass on a cell is a
# difference of its distribution function, so for these pairs $\log p(k)$ can be had with no noise
# added, by importance samples as before. You will see the difference, and that Jensen was right.


# %%
def log_cells(vae):
    """log of the normal's mass on the cells [k, k + 1) / 17, by importance samples, (N,)."""
    torch.manual_seed(0)
    q = vae.encode((levels.test + 0.5) / 17)
    z = q.sample((PARTICLES,))
    p = vae.decode(z).base_dist
    left, right = ((k / 17 - p.mean) / p.stddev for k in (levels.test, levels.test + 1))
    above = left > 0  # mirrored, so that 1 - 1 is not the mass of a cell in the upper tail
    low, high = torch.where(above, -right, left), torch.where(above, -left, right)
    below_low, below_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    log_cell = below_high + (-torch.expm1(below_low - below_high)).log()
    log_joint = log_cell.sum((-1, -2)) + vae.prior().log_prob(z)
    return (log_joint - q.log_prob(z)).logsumexp(0) - math.log(PARTICLES)


# %%
for name in ("shared", "per-dimension", "predicted"):
    gap, se = paired(log_cells(normals[name]), log_mass[f"normal, {name}"])
    print(f"normal, {name}: dequantising costs {gap / BIT:.3f} +- {se / BIT:.3f} bits a pixel")
    assert SMOKE or gap > 0

# %% [markdown]
# And what may *not* stand in that table. You will see numbers that look the part.

# %%
at_points = trained("normal", grey, variance="predicted:1e-4")
z = wrong.encode(noisy.test).sample()
score = dist.Bernoulli(logits=wrong.likelihood.net(z), validate_args=False).log_prob(noisy.test)
densities = measured(at_points, grey.test), results["normal, shared"]
lattice, plain = (-found.evidence.log_evidence.mean() / BIT for found in densities)
refused = {
    "normal on k / 16, log2(16) added": (lattice + 4, "a density at points bounds nothing"),
    "cross-entropy of grey pixels": (-score.sum((1, 2)).mean() / BIT, "of no density"),
    "normal, shared, of y in [0, 1)": (plain, "without log2(17)"),
    "the same, of 255 y": (plain + math.log2(255), "a density has units, and bits move with them"),
}
rows = {name: (f"{value:.3f}", why) for name, (value, why) in refused.items()}
pd.DataFrame.from_dict(rows, orient="index", columns=["looks like bits a pixel", "what is wrong"])

# %% [markdown]
# ## 6. Counts
#
# Counts without a ceiling. A Poisson's variance is its mean; most counts vary more, from causes
# that no $z$ explains (*overdispersion*), and have zeros that mean "not looked". Here is a truth
# of that kind, with two latent numbers, so that every fit can be held against it:
#
# $$z \sim \mathcal N(0, I), \quad m = e^{zW + b}, \quad
# x_i = 0 \text{ with probability } \tfrac15, \text{ else } x_i \sim \operatorname{NB}(m_i, r = 2),
# \text{ of variance } m_i + m_i^2 / 2$$
#
# You will see means and variances of its columns.

# %%
COLUMNS, R, ZEROS = 10, torch.tensor(2.0), torch.tensor(0.2)
torch.manual_seed(0)
W, b = 0.5 * torch.randn(2, COLUMNS), torch.linspace(0, 3, COLUMNS)


def simulate(n):
    """Draw n rows: a Poisson whose rate is gamma, some entries then set to 0."""
    rate = dist.Gamma(R, R / (torch.randn(n, 2) @ W + b).exp()).sample()
    return torch.poisson(rate) * (torch.rand(n, COLUMNS) > ZEROS)


train, held_out, test = simulate(ROWS), simulate(500), simulate(ROWS // 8)
pd.DataFrame({"mean": train.mean(0), "variance": train.var(0)}).T.round(1)

# %% [markdown]
# The truth as a Pyro pair, of Pyro's own distribution. With two latents its $\log p(x)$ is an
# integral that `evidence.quadrature` does, from the model alone. You will see it.


# %%
def truth(x):
    """The model that drew the data."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        logits = z @ W + b - R.log()
        p = dist.ZeroInflatedNegativeBinomial(R, logits=logits, gate=ZEROS)
        pyro.sample("x", p.to_event(1), obs=x)


def any_guide(x):
    """Any: quadrature does not ask it."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


# %%
exact = evidence.quadrature(truth, any_guide, test)
print(f"truth: {exact.log_evidence.mean():.3f} nats a row, error at most {exact.error.max():.0e}")

# %% [markdown]
# Four fits. You will see how far below the truth each stays on rows that it was not trained on,
# with paired errors. Where $\hat k$ says that importance samples are not to be trusted, the true
# figure is higher: the last line tells by how much for the worst of them, by quadrature of a few
# rows, and that it is little beside the difference.

# %%
fits, table = {}, pd.DataFrame()
for gate in ("", "zero-inflated-"):
    for law in ("poisson", "negative-binomial"):
        made = {"latent_dim": 2, "hidden": (32,), "posterior_options": {"input_scale": 0.05}}
        vae = fits[gate + law] = build(data_shape=(COLUMNS,), likelihood=gate + law, **made)
        settings = SETTINGS | {"validation": held_out, "batch_size": 100, "lr": 5e-3}
        fit(vae.model, vae.guide, train, epochs=EPOCHS // 2, **settings)
        found = measured(vae.requires_grad_(False), test)
        difference, error = paired(found.evidence.log_evidence, exact.log_evidence)
        table.loc[gate + law, "log p(x)"] = f"{found.evidence.log_evidence.mean():.2f}"
        table.loc[gate + law, "less the truth"] = f"{difference:.2f} +- {error:.2f}"
        table.loc[gate + law, "k-hat < 0.7"] = f"{(found.khat < 0.7).double().mean():.0%}"
table

# %%
vae, few = fits["poisson"], test[: ROWS // 200]
missed = evidence.quadrature(vae.model, vae.guide, few).log_evidence
missed = missed - measured(vae, few).evidence.log_evidence
print(f"poisson: importance samples miss {missed.mean():.2f} nats a row, over {len(few)} rows")

# %% [markdown]
# You will see, on the left, the counts of one column (grey bars), and what 20,000 draws of each fit
# say of them; on the right, variance against mean for all columns.

# %%
column, top = 6, 40
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
share = torch.stack([(train[:, column] == k).double().mean() for k in range(top)])
left.bar(range(top), share, color="#d0d0d0", label="data")
right.loglog(train.mean(0), train.var(0), "s", color="#b0b0b0", markersize=9, label="data")
for (word, vae), colour in zip(fits.items(), (BLUE, INK, GREEN, RED), strict=True):
    draws = vae.sample(20_000)
    share = [(draws[:, column] == k).double().mean() for k in range(top)]
    left.plot(range(top), share, color=colour, label=word, lw=1.3)
    right.loglog(draws.mean(0), draws.var(0), ".", color=colour, label=word)
left.set(xlabel=f"count in column {column}", ylabel="share of rows", yscale="log")
right.set(xlabel="mean of a column", ylabel="its variance", xticks=[2, 5, 10, 20])
right.xaxis.set(major_formatter="{x:g}", minor_formatter="")  # or they lie on one another
left.legend(frameon=False, fontsize=7.5)
plt.show()

# %% [markdown]
# And the parameters, where the truth is 2 and 0.2. You will see that the negative binomial without
# a gate makes up for the zeros by a smaller $r$, which is a wider law, and that the gate brings $r$
# nearer to the truth in every column.

# %%
torch.manual_seed(0)
gated = fits["zero-inflated-negative-binomial"]
gate = gated.likelihood.params(gated.encode(test).sample())[:, 1].sigmoid().mean(0)
rows = {
    f"r, truth {R}": fits["negative-binomial"].likelihood.log_r.exp().tolist(),
    f"r with a gate, truth {R}": gated.likelihood.log_r.exp().tolist(),
    f"share of extra zeros, truth {ZEROS}": gate.tolist(),
}
pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="column").round(2)

# %% [markdown]
# ## 7. A table of mixed columns, with holes
#
# `Mixed` is one likelihood for each group of a table's columns (Nazabal et al. 2020). The table:
# scikit-learn's 178 wines. Eleven measurements are normal, standardised on the training rows; two,
# positive and skewed, are log-normal in their own units; and the grower, one of three, is a
# category. A quarter of all entries is taken out at random: `masked:mixed` integrates what is
# missing out of the likelihood, and its encoder is given zeros and the mask (Mattei & Frellsen
# 2019). You will see the first test rows.

# %%
wine, generator = load_wine(), torch.Generator().manual_seed(0)
names = [*wine.feature_names, "grower"]
rows = torch.tensor([[*x, y] for x, y in zip(wine.data, wine.target, strict=True)])
rows = rows[torch.randperm(len(rows), generator=generator)]
skewed = [names.index("malic_acid"), names.index("color_intensity")]
normal = [i for i in range(13) if i not in skewed]
whole = data.standardize(data.Data("wine", *rows.split([100, 20, 58])), columns=normal)
holes = torch.rand(rows.shape, generator=generator) < 0.25
complete = torch.cat([whole.train, whole.validation, whole.test])
train, held_out, test = torch.where(holes, torch.nan, complete).split([100, 20, 58])
pd.DataFrame(test[:4].numpy(), columns=names).round(2)

# %%
groups = [("normal", normal), ("log-normal", skewed), ("categorical", [13], {"num_levels": 3})]
options = {"likelihood": "masked:mixed", "likelihood_options": {"columns": groups}}
vae = build(data_shape=(14,), latent_dim=2, hidden=(64,), **options)
settings = SETTINGS | {"validation": held_out, "batch_size": 25, "lr": 5e-3}
fit(vae.model, vae.guide, train, epochs=5 * EPOCHS, **settings)
log_p = measured(vae.requires_grad_(False), test).evidence.log_evidence

# %% [markdown]
# $\log p(x_{\text{obs}})$ is part mass, part density: no bits, and its nats have the units of the
# columns. The Jacobian of the standardising makes them those of the original table, where models
# that standardised differently compare. You will see both figures; then what `evidence.impute`
# fills in, $\mathbb E[x_{\text{mis}} | x_{\text{obs}}]$ by importance weights, against the columns'
# means. Last the grower: taken out of every test row, it is guessed from what is left, so that the
# model of a table is a classifier too.

# %%
in_units = (log_p + whole.log_jacobian(test)).mean()
print(f"log p(x_obs): {log_p.mean():.2f} standardised, {in_units:.2f} in original units")
missing, filled = test.isnan(), evidence.impute(vae.model, vae.guide, test, num_samples=200)
assert torch.equal(filled.mean[~missing], test[~missing])
for name, guess in (("imputed", filled.mean), ("column means", train.nanmean(0).expand_as(test))):
    error = (guess - whole.test)[:, normal][missing[:, normal]]
    print(f"{name}: RMSE {error.square().mean().sqrt():.3f} of {len(error)} missing normals")
unnamed, grower = test.clone(), whole.test[:, 13]
unnamed[:, 13] = torch.nan
drawn = evidence.impute(vae.model, vae.guide, unnamed, num_samples=200).samples[..., 13]
right, common = drawn.mode(0).values == grower, grower == grower.mode().values
print(f"grower: {right.double().mean():.0%} right; the commonest: {common.double().mean():.0%}")

# %% [markdown]
# You will see, on the left, the missing measurements against what was filled in, with bars for the
# middle 80 % of the draws; on the right, where the encoder puts the test wines, holes and all.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
low, high = filled.samples.quantile(torch.tensor([0.1, 0.9]), 0)
kept = (whole.test, filled.mean, low, high)
true, middle, low, high = (t[:, normal][missing[:, normal]] for t in kept)
bars = torch.stack([middle - low, high - middle]).clamp(min=0)
left.errorbar(true, middle, yerr=bars, fmt=".", color=BLUE, elinewidth=0.5, alpha=0.7)
left.axline((0, 0), slope=1, color=GREY, linestyle=":")
inside = ((low <= true) & (true <= high)).double().mean()
left.set(xlabel="true value, in training standard deviations", ylabel="filled in")
left.set_title(f"missing measurements: {inside:.0%} within their bars", fontsize=10)
for k, colour in enumerate((BLUE, RED, GREEN)):
    right.scatter(*vae.encode(test).mean[grower == k].T, s=16, color=colour, label=f"grower {k}")
right.set(xlabel="z[0]", ylabel="z[1]", title="means of q(z|x_obs)")
right.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ---
# What to take for what:
#
# | data | likelihood | $p$ is a |
# |---|---|---|
# | bits | `bernoulli` | mass |
# | levels | `discretized-logistic` and its mixture, `categorical`, `binomial` | mass |
# | counts | `negative-binomial`, `zero-inflated-negative-binomial` | mass |
# | grey values in $[0, 1]$ | `continuous-bernoulli`, `beta` | density |
# | real numbers | `normal` with a variance that is learnt, `student-t`, `laplace` | density |
# | a table | `mixed`, `masked:mixed` | some of each |
#
# Two masses of the same data compare. A density compares with a density of the same data in the
# same units; with a mass of levels by way of dequantising, and then as a bound. One seed each, and
# nothing was tuned: small differences mean nothing.
#
# The sizes of this run: the small ones if and only if it is a smoke run.

# %%
assert SMOKE == (EPOCHS < 10) == (PARTICLES < 100) == (len(train) + ROWS < 1000)
print(f"smoke run: {SMOKE}; {EPOCHS} epochs, {PARTICLES} draws, {ROWS} rows of counts")
