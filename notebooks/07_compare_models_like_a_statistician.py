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
# # Compare models like a statistician
#
# Five models of one data set. Which is best, by how much, and could the answer have been chance?
# Three sources of chance have to be told apart: which *images* were tested, by which *draws* of
# $z$ the evidence was estimated, and from which *seed* each model was trained.
#
# 1. The ELBO is the wrong yardstick
# 2. Five models, trained alike
# 3. The evidence, paired: differences, stacking, ten pairs at once
# 4. Seeds
# 5. Rate and distortion: what one number hides
# 6. Can it say "no difference"?
# 7. Choosing
#
# Swapping a prior is the matter of `03_swap_the_prior`. The flow prior needs zuko:
# `pip install 'pyrovae[flows]'`. All is in nats, a mean per image, unless it says otherwise.

# %%
import itertools
import math
import os
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from scipy import stats

from pyrovae import VAE, build, convert, data, diagnostics, evidence, fit, nets, posteriors
from pyrovae.training.comparison import paired

# %%
# %matplotlib inline
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
COLOURS = {"standard-normal": "#8c8c8c", "mixture-of-normals": "#0b5fa5", "vamp-prior": "#c8553d"}
COLOURS |= {"flow-prior": "#3a7d44", "hierarchical": "#8e5ea2"}

# %% [markdown]
# The sizes of this run, all in one place.

# %% tags=["parameters"]
SMOKE = bool(os.environ.get("PYROVAE_SMOKE"))
EPOCHS, PATIENCE, CURVE_EPOCHS, SEEDS = 150, 15, 80, 6
TESTED, PARTICLES, DRAWS, SIMULATIONS = 1000, 2000, 200, 500  # images: at most; draws: an image
if SMOKE:
    EPOCHS, PATIENCE, CURVE_EPOCHS, SEEDS = 3, 3, 2, 4
    TESTED, PARTICLES, DRAWS, SIMULATIONS = 60, 100, 50, 50

# %% [markdown]
# The images: scikit-learn's handwritten digits, 8 x 8 pixels, each 0 or 1. Here the *comparison*
# is the purpose, and its errors fall with the root of the number of test images: 1,000 images
# train, and what is left over tests too. The split is random, and one for all models and seeds.

# %%
digits = data.load("digits", binarize="threshold")
train, held_out = digits.train[:1000], digits.validation
test = torch.cat([digits.test, digits.train[1000:]])[:TESTED]
print(f"{len(train)} training images, {len(held_out)} for validation, {len(test)} for the test")

# %% [markdown]
# Five models, one hidden layer of 100 everywhere: four priors of 8 latent numbers, and a pair of
# two levels, $p(z_2)\,p(z_1|z_2)\,p(x|z_1, z_2)$. `trained` trains any of them, stops when the
# ELBO of the validation images has not risen for some epochs, and keeps the best epoch's weights.

# %%
MODELS = {
    "standard-normal": {},
    "mixture-of-normals": {"prior_options": {"num_components": 20}},
    "vamp-prior": {"prior_options": {"num_components": 50}},
    "flow-prior": {"prior_options": {"flow": "neural-spline:1"}},
}
MODELS = {name: options | {"prior": name} for name, options in MODELS.items()}
MODELS["hierarchical"] = {"pair": "hierarchical-vae"}
MADE = {"data_shape": (8, 8), "latent_dim": 8, "hidden": (100,), "likelihood": "bernoulli"}
TRAINED = {"batch_size": 200, "lr": 4e-3, "compile": "never"}  # seconds without a compiler's
STOPPED = {"validation": held_out, "epochs": EPOCHS, "patience": PATIENCE}  # early


# %%
def trained(name, seed=0, **rule):
    """Return a pair, its history and the processor's seconds."""
    vae, start = build(**MADE, **MODELS[name], seed=seed), time.process_time()
    history = fit(vae.model, vae.guide, train, seed=seed, **TRAINED, **rule or STOPPED)
    return vae.requires_grad_(False), history, time.process_time() - start


def log_evidence(vae, x=test, seed=0):
    """Return log p(x), an `Evidence`: estimates, their errors, k-hat."""
    return evidence.iwae(vae.model, vae.guide, x, num_particles=PARTICLES, seed=seed)


# %% [markdown]
# ## 1. The ELBO is the wrong yardstick
#
# $$\text{ELBO} = \log p(x) - \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big)$$
#
# The ELBO judges the model *and the guide*: the difference of two ELBOs is that of the evidences
# less that of the gaps, and nobody said that the gaps are equal. Another prior makes another
# posterior, which the same family of guides fits better or worse.
#
# To see it, hold the model fixed. One standard-normal VAE is trained; then, with prior and
# likelihood *frozen*, two other guides: one with a full covariance, one that got few epochs.

# %%
trainings = {"standard-normal": trained("standard-normal")}
own = trainings["standard-normal"][0]


def with_guide(posterior, **options):
    """Return the very model of `own`, with another guide trained for it."""
    torch.manual_seed(0)
    parts = {"data_shape": (8, 8), "latent_dim": 8, "net": nets.mlp(hidden=(100,))}
    other = VAE(own.prior, own.likelihood, posterior(**parts))
    fit(other.model, other.guide, train, **TRAINED, **STOPPED | options)
    return other


# %%
few = max(1, EPOCHS // 20)
guides = {
    "diagonal, its own": own,
    "full covariance": with_guide(posteriors.FullRankNormal),
    f"diagonal, {few} epochs": with_guide(posteriors.MeanFieldNormal, epochs=few),
}
found = {}
for name, vae in guides.items():
    drawn = evidence.summarise(vae.model, vae.guide, test, num_particles=DRAWS)
    found[name] = drawn.elbo, log_evidence(vae)

# %% [markdown]
# You will see three guides of *one* model, whose $\log p(x)$ is one number an image, whoever
# estimates it: every true difference in the last but one column is 0. The share of images whose
# weights have Pareto $\hat k < 0.7$ says where an estimate by importance weights is of use
# (Vehtari et al. 2024); elsewhere it is a lower bound. Errors are paired, over images.


# %%
def pm(value, error, digits=3):
    """Return a difference with its error, as text."""
    return f"{value:+.{digits}f} +- {error:.{digits}f}"


table = pd.DataFrame()
for name, (elbo, e) in found.items():
    own_elbo, own_e = found["diagonal, its own"]
    table.loc[name, ["ELBO", "log p(x)"]] = f"{elbo.mean():.2f}", f"{e.log_evidence.mean():.2f}"
    if e is not own_e:
        table.loc[name, "ELBO, less own"] = pm(*paired(elbo, own_elbo))
        difference = paired(e.log_evidence, own_e.log_evidence)
        table.loc[name, "log p(x), less own"] = pm(*difference)
    table.loc[name, "k-hat < 0.7"] = f"{(e.khat < 0.7).double().mean():.0%}"
table.fillna("")

# %% [markdown]
# The ELBO calls one model three models. The estimate of $\log p(x)$ does so far less, and where
# it does, $\hat k$ warns: a bad guide's weights have a heavy tail, and the estimate falls short.
# (A larger family holds better guides; whether training finds them is another matter.) So: the
# evidence, and $\hat k$ beside it. Two more rules, each with its section below. *Pair the
# errors*: some digits are harder than others for every model alike, and that cancels in
# $\log p_a(x_n) - \log p_b(x_n)$ (section 3). *One seed is one seed*: the paired error says what
# other test images would have done to this difference, and nothing of another seed (section 4).

# %% [markdown]
# ## 2. Five models, trained alike
#
# The same data, optimiser, batch size, learning rate, early stopping and largest number of epochs.
# "Alike" is a choice: nothing was tuned for any of them, and a model that wants more epochs than
# it is allowed is judged by what it had.

# %%
trainings |= {name: trained(name) for name in list(MODELS)[1:]}
models = {name: vae for name, (vae, *_) in trainings.items()}

# %% [markdown]
# You will see the ELBO of the validation images by epoch, a dot at the epoch that was kept, and
# what each model costs: its parameters, and the processor's seconds to train it.

# %%
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, (_, history, _) in trainings.items():
    elbo = [-loss for loss in history["validation_loss"]]
    axes.plot(history["epoch"], elbo, color=COLOURS[name], label=name, lw=1)
    axes.plot(history.best_epoch, max(elbo), "o", color=COLOURS[name], ms=5)
settled = min(-h["validation_loss"][len(h) // 5] for _, h, _ in trainings.values())
axes.set(xlabel="epoch", ylabel="ELBO of validation images, nats", ylim=(settled - 1, None))
axes.legend(frameon=False, fontsize=8)
plt.show()

# %%
costs = pd.DataFrame()
for name, (vae, history, seconds) in trainings.items():
    costs.loc[name, "parameters"] = f"{sum(p.numel() for p in vae.parameters()):,}"
    costs.loc[name, "seconds"] = f"{seconds:.1f}"
    costs.loc[name, ["epochs", "epoch kept"]] = str(len(history)), str(history.best_epoch)
    costs.loc[name, "validation ELBO"] = f"{-min(history['validation_loss']):.2f}"
costs

# %% [markdown]
# The validation ELBO chose the epoch, so as a score it is biased upwards: the best of many looks.
# From here on test images count, by which no weights and no epoch were chosen.
#
# ## 3. The evidence, paired
#
# $\log \hat p(x) = \log \frac1K \sum_k w_k$ for each test image, by `evidence.iwae`. You will see
# two errors. Over the *images*, sd$/\sqrt N$: how far the mean of all possible images may be. Of
# the *draws*, each image's own put together: how far more draws would move this mean; one image
# with a heavy tail can make most of it. "Trusted" is the strict word, $\hat k < 0.5$ and more than
# 100 effective draws: only there is the error of the draws to be believed. Not every image is
# trusted; whether that matters *for the comparison* the last columns say, the difference from the
# standard normal by a twentieth of the draws and by all. The gap, $\log p(x)$ less the ELBO, is not
# the same for all: where the gap of the better model is larger by more than its lead, the ELBO
# gets the order wrong. Below the table, both orders.

# %%
results = {name: log_evidence(vae) for name, vae in models.items()}
log_p = {name: e.log_evidence for name, e in results.items()}
curve = {"betas": [1.0], "x": test, "num_draws": DRAWS}  # rate and distortion, see section 5
terms = {name: diagnostics.rate_distortion(lambda _, v=vae: (v.model, v.guide), **curve)
         for name, vae in models.items()}  # fmt: skip

few = max(30, PARTICLES // 20)
fewer = {name: evidence.iwae(vae.model, vae.guide, test, num_particles=few).log_evidence
         for name, vae in models.items()}  # fmt: skip

# %%
table = pd.DataFrame()
for name, e in results.items():
    table.loc[name, "log p(x)"] = f"{log_p[name].mean():.3f}"
    table.loc[name, "images"] = f"+- {log_p[name].std() / len(test) ** 0.5:.3f}"
    table.loc[name, "draws"] = f"+- {e.standard_error.square().sum().sqrt() / len(test):.4f}"
    for column, good in {"trusted": e.trusted, "k-hat < 0.7": e.khat < 0.7}.items():
        table.loc[name, column] = f"{good.double().mean():.0%}"
    table.loc[name, "ELBO"] = f"{terms[name].elbo.item():.3f}"
    table.loc[name, "gap"] = f"{log_p[name].mean() - terms[name].elbo.item():.3f}"
    for k, values in ((few, fewer), (PARTICLES, log_p)) if name != "standard-normal" else ():
        difference = paired(values[name], values["standard-normal"])
        table.loc[name, f"less normal, K = {k}"] = pm(*difference)
table.fillna("")

# %%
elbos = {name: t.elbo for name, t in terms.items()}
for kind, values in {"by ELBO": elbos, "by log p(x)": log_p}.items():
    ordered = sorted(models, key=lambda name: -values[name].mean())
    print(f"{kind}, best first: {', '.join(ordered)}")

# %% [markdown]
# Now the pairing, in a picture. You will see, on the left, each image's $\log p(x)$ under two of
# the models: along the diagonal images differ by tens of nats, across it the models differ by
# little. On the right the same, less the mean: the spread that an unpaired error is made of, and
# the spread of the differences.

# %%
a, b = log_p["vamp-prior"], log_p["standard-normal"]
print(f"correlation over images {torch.corrcoef(torch.stack([a, b]))[0, 1]:.3f}")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.scatter(b, a, s=8, color=COLOURS["vamp-prior"], alpha=0.5, lw=0)
left.axline((-20, -20), slope=1, color="#222222", lw=0.8)
left.set(xlabel="log p(x), standard-normal, nats", ylabel="log p(x), vamp-prior, nats")
bins = torch.linspace(-24, 24, 97).numpy()
right.hist((a - a.mean()).numpy(), bins, color="#cccccc", label="log p(x), vamp-prior")
right.hist((a - b - (a - b).mean()).numpy(), bins, histtype="step", label="difference",
           color=COLOURS["vamp-prior"], lw=1.5)  # fmt: skip
right.set(xlabel="less its mean, nats", ylabel="test images")
right.legend(frameon=False, fontsize=8, loc="upper right")
plt.show()

# %% [markdown]
# And for all ten pairs of models, by their initials: you will see the difference of the means, bars
# of two paired errors, and in grey those one would have by taking the means for independent.

# %%
couples = list(itertools.combinations(models, 2))
initials = dict(zip(models, "NMVFH", strict=True))
differences = {(m, n): paired(log_p[m], log_p[n]) for m, n in couples}
naive = {(m, n): ((log_p[m].var() + log_p[n].var()) / len(test)).sqrt() for m, n in couples}
ratio = torch.tensor([naive[couple] / differences[couple][1] for couple in couples])
print(f"naive error / paired error: {ratio.min():.1f} to {ratio.max():.1f}, median", end=" ")
print(f"{ratio.median():.1f}: unpaired one would need {ratio.median() ** 2:.0f} times the images")

# %%
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
for row, couple in enumerate(couples):
    value, error = differences[couple]
    words = ("naive", "paired") if row == 0 else (None, None)
    grey, blue = {"color": "#d5d5d5", "elinewidth": 6}, {"color": "#0b5fa5", "capsize": 3, "ms": 5}
    axes.errorbar(value, row, xerr=2 * naive[couple], label=words[0], **grey)
    axes.errorbar(value, row, xerr=2 * error, fmt="o", label=words[1], **blue)
axes.axvline(0, color="#222222", lw=0.8, ls=":")
axes.set_yticks(range(10), [f"{initials[m]} - {initials[n]}" for m, n in couples])
axes.set(xlabel="difference of mean log p(x), nats; bars of 2 standard errors")
axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The same as a table of ArviZ's form: you will see `convert.compare_evidence`, *sums* over the
# images. `elpd_diff` is the difference from the best, `dse` its paired error; `se` is the naive
# error of one sum, `mcse` the part of it that more draws would remove. `weight` answers another
# question than "which is best": weights on the simplex that maximise
# $\sum_n \log \sum_m w_m\, p_m(x_n)$, the score of the *mixture* (stacking, Yao et al. 2018). A
# model that is second on every image gets 0, however close; one that is worse on the mean and
# better on some images gets its share.

# %%
table = convert.compare_evidence(results)
table[["rank", "log_evidence", "elpd_diff", "dse", "se", "mcse", "weight"]].round(2)

# %% [markdown]
# Those weights were fitted to the test images, and would flatter themselves there. You will see
# weights fitted to the validation images, and what that mixture gains on the test images over the
# model that the *validation* images call best.

# %%
on_held_out = {name: log_evidence(vae, held_out) for name, vae in models.items()}
weights = convert.compare_evidence(on_held_out)["weight"]
chosen = weights.index[0]  # the rows are in order, best first
mixture = torch.stack([log_p[m] + math.log(max(w, 1e-300)) for m, w in weights.items()])
print(", ".join(f"{name} {w:.2f}" for name, w in weights.items()))
print(f"mixture less {chosen}: {pm(*paired(mixture.logsumexp(0), log_p[chosen]))}")

# %% [markdown]
# Five models make ten differences. Of ten true zeros, were they independent, one or more would be
# beyond two errors with a probability of 40 %. Bonferroni multiplies every p-value by 10. Holm
# (1979) multiplies the smallest by 10, the next by 9, ..., none below the one before: as safe, and
# it never rejects less. You will see both; p is of a normal law, fair at this many images.

# %%
table = pd.DataFrame(differences, index=["difference", "paired error"]).T
table.index = [f"{m} - {n}" for m, n in couples]
table["z"] = table["difference"] / table["paired error"]
table["p"] = [math.erfc(abs(z) / math.sqrt(2)) for z in table["z"]]
table = table.sort_values("p")
table["Bonferroni"] = (10 * table["p"]).clip(upper=1)
table["Holm"] = (table["p"] * [*range(10, 0, -1)]).clip(upper=1).cummax()
holm = table["Holm"]
assert (table["Holm"] <= table["Bonferroni"] + 1e-15).all()
table.map("{:.2g}".format)

# %% [markdown]
# These p-values, however small, speak of *these five trained pairs*: on other test images they
# would differ so too. Whether the *priors* differ is a question about trainings.
#
# ## 4. Seeds
#
# Two of the models, the plainest and one with a learnt prior, are trained from several seeds: other
# initial weights, another order of the data, other draws. The split stays.


# %%
def over_seeds(name):
    """Return log p(x) of the test images by seed, (S, N)."""
    others = [log_evidence(trained(name, seed)[0]).log_evidence for seed in range(1, SEEDS)]
    return torch.stack([log_p[name], *others])


by_seed = {"standard-normal": over_seeds("standard-normal")}

# %%
by_seed["vamp-prior"] = over_seeds("vamp-prior")

# %% [markdown]
# You will see each training's mean $\log p(x)$, with bars of 2 *paired* errors: of its difference
# from the mean of all trainings shown. If images were all there is to chance, the dots of one model
# would agree within bars. In the table, the standard deviation over seeds, beside the errors over
# images, naive and paired (the median over pairs of seeds).

# %%
centre = torch.cat(list(by_seed.values())).mean(0)
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
for row, (name, values) in enumerate(by_seed.items()):
    for y, each in enumerate(values):
        bar = {"xerr": 2 * paired(each, centre)[1], "color": COLOURS[name], "capsize": 2, "ms": 4}
        axes.errorbar(each.mean(), row + 0.1 * (y - (SEEDS - 1) / 2), fmt="o", **bar)
axes.set_yticks(range(2), by_seed)
axes.set(xlabel="mean log p(x) of the test images, nats", ylim=(-0.6, 1.6))
plt.show()

# %%
table = pd.DataFrame()
for name, values in by_seed.items():
    between = [paired(u, v)[1] for u, v in itertools.combinations(values, 2)]
    table.loc[name, "mean log p(x)"] = f"{values.mean():.3f}"
    table.loc[name, "sd over seeds"] = f"{values.mean(1).std():.3f}"
    table.loc[name, "naive error over images"] = f"{values[0].std() / len(test) ** 0.5:.3f}"
    table.loc[name, "paired error between seeds"] = f"{torch.tensor(between).median():.3f}"
sd = torch.stack([v.mean(1).var() for v in by_seed.values()]).mean().sqrt().item()
print(f"sd over seeds, pooled: {sd:.3f}; of a difference of two trainings: {2**0.5 * sd:.3f}")
table

# %% [markdown]
# A test that knows of both. Every training is scored on every image, images and seeds are
# *crossed*, and the difference of two models, averaged over all seeds, has the variance
#
# $$\frac{\operatorname{Var}_n(\bar d_n)}{N} \;+\; \frac{\operatorname{Var}_s(\bar a_s)}{S}
# \;+\; \frac{\operatorname{Var}_s(\bar b_s)}{S},$$
#
# $\bar d_n$ the difference of image $n$, paired, and $\bar a_s$, $\bar b_s$ the means of seed $s$.
# (What is left of one image in one training is in both kinds of term: a little too wide.) Degrees
# of freedom by Satterthwaite (1946): few seeds leave few.


# %%
def crossed(a, b):
    """Compare (S, N) with (S, N): difference, errors over images and seeds, df, p."""
    s, n = a.shape
    difference, error = paired(a.mean(0), b.mean(0))
    terms = torch.stack([torch.tensor(error**2), a.mean(1).var() / s, b.mean(1).var() / s])
    df = terms.sum() ** 2 / (terms**2 / torch.tensor([n - 1, s - 1, s - 1])).sum()
    p = 2 * stats.t.sf(abs(difference) / terms.sum().sqrt().item(), df.item())
    return difference, error, terms[1:].sum().sqrt(), df, float(p)


# %% [markdown]
# Beside it a test with no normal law in it: if the prior made no difference, the names of the
# trainings could be dealt out anew in every way, and p is the share of deals whose difference is
# at least as large: never less than 2 over the number of deals. It holds for these test images.
# You will see both tests, and what each seed alone would have said.

# %%
a, b = by_seed["vamp-prior"], by_seed["standard-normal"]
difference, of_images, of_seeds, df, p = crossed(a, b)
print(f"vamp-prior less standard-normal, {SEEDS} seeds each: {difference:+.3f}")
print(f"error: {of_images:.3f} images, {of_seeds:.3f} seeds; t, {df:.1f} df: p = {p:.2g}")
means = torch.cat([a, b]).mean(1)
deals = torch.tensor(list(itertools.combinations(range(2 * SEEDS), SEEDS)))
dealt = 2 * means[deals].mean(1) - 2 * means.mean()
print(f"{len(deals)} deals: p = {(dealt.abs() >= dealt[0].abs() - 1e-9).double().mean():.2g}")
alone = [paired(u, v) for u, v in zip(a, b, strict=True)]
print("each seed with its namesake:", ", ".join(pm(*d, 2) for d in alone))

# %% [markdown]
# With one seed each the error over seeds would be larger, by the root of the number of seeds here.
# More test images do nothing about it.
#
# ## 5. Rate and distortion
#
# $-\text{ELBO} = R + D$: the rate $R = \mathrm{KL}(q(z|x)\|p(z))$, nats that the code of an image
# costs under the prior, and the distortion $D = -\mathbb E_q \log p(x|z)$, nats that are still
# missing when the code is known (Alemi et al. 2018). One sum hides the two. Training with weight
# $\beta$ on $R$ moves a model along its own curve, on which at the optimum $dD/dR = -\beta$.
#
# `diagnostics.rate_distortion` takes a function from $\beta$ to a pair. Three of the models, three
# betas, a fixed number of epochs (early stopping looks at the ELBO, and would favour $\beta = 1$).

# %%
BETAS = (0.5, 1.0, 2.0)
curves = {}
for name in ("standard-normal", "vamp-prior", "hierarchical"):
    made = {beta: trained(name, epochs=CURVE_EPOCHS, beta=beta)[0] for beta in BETAS}
    curves[name] = diagnostics.rate_distortion(
        lambda beta, made=made: (made[beta].model, made[beta].guide), BETAS, test, num_draws=DRAWS
    )

# %% [markdown]
# You will see, on the left, the five models of section 2. Grey lines are of equal ELBO: distance
# *along* them is what the ELBO cannot see. On the right the curves, from $\beta = 0.5$ (right end)
# to $2$ (left end): the lower left has the better bound at that rate. Errors are in the table;
# those of differences between its rows, paired, are smaller.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
for axes, drawn, step in zip(panels, (terms, curves), (0.5, 2), strict=True):
    for name, c in drawn.items():
        axes.plot(c.rate, c.distortion, "o-", color=COLOURS[name], label=name)
    axes.margins(0.15)
    axes.axis(axes.axis())  # the limits stay
    for elbo in torch.arange(0, 60, step):
        axes.axline((0, elbo), slope=-1, color="#dddddd", lw=0.7, zorder=0)
    axes.set(xlabel="rate R, nats", ylabel="distortion D, nats")
    axes.legend(frameon=False, fontsize=8)
panels[0].set_title(r"five models, $\beta = 1$, lines 0.5 nats apart", fontsize=10)
panels[1].set_title("three betas, lines 2 nats apart", fontsize=10)
plt.show()

# %%
table = pd.DataFrame()
for name, c in curves.items():
    for i, beta in enumerate(BETAS):
        row = f"{name}, beta {beta:g}"
        table.loc[row, "rate"] = f"{c.rate[i]:.2f} +- {c.rate_se[i]:.2f}"
        table.loc[row, "distortion"] = f"{c.distortion[i]:.2f} +- {c.distortion_se[i]:.2f}"
        table.loc[row, "ELBO"] = f"{c.elbo[i]:.2f} +- {c.elbo_se[i]:.2f}"
        if i:
            table.loc[row, "slope from the row above"] = pm(c.slope[i - 1], c.slope_se[i - 1], 2)
table.fillna("")

# %% [markdown]
# How to read it. A high rate: the code says much of the image, as one wants for retrieval or
# compression, and is paid for under the prior. A low rate at the same ELBO: more is left to
# $p(x|z)$. Neither is better *as a density*; for a use of $z$ they are different models, and
# $\beta$ is the knob if the rate is what you need. At the optimum a slope lies between the
# $-\beta$ of its two rows; these are test images after a fixed number of epochs, so a slope
# outside says that the model is not at the optimum of *these* images.
#
# ## 6. Can it say "no difference"?
#
# A method that always finds a winner has found nothing. First the smallest null: *one* trained
# model, measured twice by other draws. You will see a difference, and the error that the draws are
# said to have.

# %%
again = log_evidence(own, seed=1)
by_draws = (again.log_evidence - log_p["standard-normal"]).mean()
errors = torch.stack([again.standard_error, results["standard-normal"].standard_error])
of_draws = errors.square().sum().sqrt() / len(test)
print(f"the same model, other draws: {by_draws:+.4f}, error of the draws {of_draws:.4f}")

# %% [markdown]
# Then the null that matters: the same *recipe*, other seeds. Two seeds of one model differ by
# nothing that deserves a name. You will see how often the paired test over images calls such a
# pair different at 5 %; then how often the crossed test does so on the same trainings, one half
# of a model's seeds against the other, in every way.

# %%
alone, by_both = [], []  # p-values
for values in by_seed.values():
    for u, v in itertools.combinations(values, 2):
        value, error = paired(u, v)
        alone.append(math.erfc(abs(value) / error / math.sqrt(2)))
    for others in itertools.combinations(range(1, SEEDS), SEEDS // 2 - 1):  # each halving once
        half = [0, *others]
        rest = [s for s in range(SEEDS) if s not in half]
        by_both.append(crossed(values[half], values[rest])[-1])
for name, p in {"paired over images": alone, "crossed with seeds": by_both}.items():
    print(f"{name}: {sum(q < 0.05 for q in p)} of {len(p)} nulls have p < 0.05")

# %% [markdown]
# Those halves share their trainings, so they are few and not independent. A simulation is not so
# limited: images, seeds and remainder as normal variables with the variances of section 4, and a
# true difference that we choose. You will see how often either test says "different", bars of two
# errors: at a difference of 0 that should be 5 % (dotted); beyond it, the more the better.

# %%
both = torch.stack(list(by_seed.values())).double()  # (2, S, N)
remainder = both - both.mean(1, keepdim=True) - both.mean(2, keepdim=True) + both.mean((1, 2), True)
of_image = (both.mean(1)[1] - both.mean(1)[0]).std()  # of the difference of the models
of_rest = remainder.std()
generator = torch.Generator().manual_seed(0)


def simulated(delta):
    """Return p-values of two models whose means differ by delta: of one seed each, and of all."""
    shapes = both.shape, both.shape[:2] + (1,), both.shape[2:]
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    a, b = of_rest * noise[0] + sd * noise[1]
    a = a + delta + of_image * noise[2]
    value, error = paired(a[0], b[0])
    return math.erfc(abs(value) / error / math.sqrt(2)), crossed(a, b)[-1]


# %%
deltas, rates = torch.linspace(0, 0.6, 7).tolist(), {"paired, one seed": [], "crossed": []}
for delta in deltas:
    drawn = torch.tensor([simulated(delta) for _ in range(SIMULATIONS)])
    for name, share in zip(rates, (drawn < 0.05).double().mean(0).tolist(), strict=True):
        rates[name].append(share)

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
for (name, rate), colour in zip(rates.items(), ("#c8553d", "#0b5fa5"), strict=True):
    errors = [2 * math.sqrt(r * (1 - r) / SIMULATIONS) for r in rate]
    axes.errorbar(deltas, rate, yerr=errors, fmt="o-", ms=4, color=colour, label=name, capsize=2)
axes.axhline(0.05, color="#222222", lw=0.8, ls=":")
axes.set(xlabel="true difference of mean log p(x), nats", ylabel='share that says "different"')
axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print(", ".join(f"{name}: {rate[0]:.1%}" for name, rate in rates.items()), "at no difference")

# %% [markdown]
# The paired test over images calls models different that are not, as far as their recipe goes: it
# is not wrong, it answers another question. The crossed test keeps to 5 % or so. What it cannot see
# is at the left of its curve: for smaller differences it needs more seeds as well as more images.
#
# ## 7. Choosing
#
# The table to hand over. bits/dim is $-\log_2 p(x)$ a pixel; it has a meaning because pixels are
# discrete. The difference is from the best, with two errors: paired over images, and with seeds
# too, $\sqrt{\text{paired}^2 + 2 s^2}$, $s$ the pooled standard deviation over seeds of section 4,
# taken to hold for the three that were trained once. You will see one of three verdicts: *behind*:
# the larger error, too, leaves p < 5 % among ten pairs (Bonferroni; Student's t, as $s$ is of few
# seeds); *behind, this seed*: Holm's p over images is below 5 %, another seed might undo it; *not
# told apart*: not even that.


# %%
def verdict(name, best):
    """Return the difference from the best with both errors, and what they allow to be said."""
    value, error = paired(log_p[name], log_p[best])
    wide = math.hypot(error, math.sqrt(2) * sd)
    p = next(holm[key] for key in (f"{name} - {best}", f"{best} - {name}") if key in holm)
    said = "behind, this seed" if p < 0.05 else "not told apart"
    limit = stats.t.isf(0.05 / 10 / 2, 2 * (SEEDS - 1))
    return pm(value, error, 2), f"{wide:.2f}", "behind" if -value > limit * wide else said


# %%
order = sorted(models, key=lambda name: -log_p[name].mean())
table = pd.DataFrame()
for name in order:
    value, error = paired(log_p[name], torch.zeros(len(test)))
    table.loc[name, "log p(x)"] = f"{value:.2f} +- {error:.2f}"
    table.loc[name, "bits/dim"] = f"{-value / (64 * math.log(2)):.4f}"
    against = ("", "", "best mean") if name == order[0] else verdict(name, order[0])
    table.loc[name, ["less the best", "error with seeds", "verdict"]] = against
    table.loc[name, "rate"] = f"{terms[name].rate.item():.2f}"
    table.loc[name, ["parameters", "seconds"]] = costs.loc[name, ["parameters", "seconds"]]
table

# %% [markdown]
# ---
# How to choose by it. Among models that are not told apart, and those that are behind on one seed
# alone, take the cheaper, or the one whose rate suits the use; if the choice matters, buy seeds,
# not images. The best mean is the best of five, so its own figure is a little flattered.
#
# What was not varied: the split into training and test images, the set-up (nothing was tuned), the
# data set: the errors here know nothing of these. And $\log p(x)$ is one yardstick: it says nothing
# of samples, of labels, or of what $z$ is good for.
#
# The sizes of this run: the small ones if and only if it is a smoke run.

# %%
assert SMOKE == (SEEDS < 6) == (len(test) < 100) == (PARTICLES < 500)
print(f"smoke run: {SMOKE}; {EPOCHS} epochs, {len(test)} images, {PARTICLES} draws, {SEEDS} seeds")
