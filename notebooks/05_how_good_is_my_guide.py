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
# # How good is my guide?
#
# A VAE is trained, its ELBO has settled. Is $q(z|x)$ any good? Here the measures that answer are
# taken of one VAE of the digits, beside guides spoilt on purpose, and beside the truth.
#
# 1. The question: the gap
# 2. Pareto k-hat: are the importance weights to be trusted?
# 3. The evidence by importance sampling, and its intervals
# 4. Annealing: $\log p(x)$ from both sides
# 5. The gap taken apart: the family and the network
# 6. Calibration
# 7. NUTS beside the guide
# 8. Which measure, when, at what cost
#
# What the ELBO is, and why, is in `01_why_vaes_are_variational`. Everything is in nats.

# %%
import math
import os
import time

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

from pyrovae import build, convert, data, diagnostics, evidence, fit, log_weights, pairs, plots
from pyrovae.evidence.pareto import khat
from pyrovae.optimise import cosine

# %%
# %matplotlib inline
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
plt.rcParams.update({"figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.1})
plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 8, "axes.titlesize": 10})
torch.set_default_dtype(torch.float64)
BLUE, RED, GREEN, GREY, INK = "#0b5fa5", "#c8553d", "#3a7d44", "#8c8c8c", "#222222"
COLOURS = {"trained": BLUE, "narrow": RED, "wide": GREEN}

# %% [markdown]
# The sizes of this run, all in one place. Then the pairs: scikit-learn's digits, each pixel 0 or 1;
# a standard normal prior, Bernoulli pixels, a normal guide. One VAE has two latent numbers, so that
# $p(z|x)$ can be drawn and integrated; the other has eight, where that is out of reach.

# %% tags=["parameters"]
SMOKE = bool(os.environ.get("PYROVAE_SMOKE"))
EPOCHS, TESTED, FEW, DRAWS, SEEDS = (2, 8, 4, 1000, 2) if SMOKE else (80, 60, 30, 30_000, 20)
TEMPERATURES = (3, 10) if SMOKE else (3, 10, 30, 100)
SIMULATIONS, CHAIN = (80, 20) if SMOKE else (1000, 400)

# %%
digits = data.load("digits", binarize="threshold", dtype=torch.float64)
test, few = digits.test[:TESTED], digits.test[:FEW]


def trained(latent_dim, posterior="mean-field-normal"):
    words = {"posterior": posterior, "hidden": (64,), "net_options": {"activation": "tanh"}}
    vae = build(data_shape=(8, 8), latent_dim=latent_dim, **words)
    settings = {"batch_size": 64, "lr": 3e-3, "schedule": cosine, "epochs": EPOCHS}
    fit(vae.model, vae.guide, digits.train, validation=digits.validation, **settings)
    return vae.requires_grad_(False)  # from here on it is measured


plane, deep = trained(2), trained(8)

# %%
seconds = {}


def timed(name, number, measure, *args, **options):
    """Return measure(*args, **options), and note the seconds that it took a datum."""
    start = time.perf_counter()
    result = measure(*args, **options)
    seconds[name] = (time.perf_counter() - start) / number
    return result


def mean(values, digits=2):
    """The mean over data +- its standard error, as text."""
    return f"{values.mean():.{digits}f} +- {values.std() / len(values) ** 0.5:.{digits}f}"


# %% [markdown]
# ## 1. The question: the gap
#
# $$\text{ELBO} = \log p(x) - \mathrm{KL}\big(q(z|x)\,\|\,p(z|x)\big)$$
#
# $\log p(x)$ is the model's alone; the *gap* below it is what a bad guide costs. The ELBO does not
# tell a bad model under a good guide from a good model under a bad one. So let one model have three
# guides: the trained one, and this with its standard deviations times 0.3 (narrow) or 2 (wide).


# %%
def scaled(vae, factor):
    """The guide of a VAE, stretched about its mean."""

    def guide(x):
        with pyro.plate("data", len(x)):
            q = vae.encode(x)
            stretch = dist.transforms.AffineTransform((1 - factor) * q.mean, factor, event_dim=1)
            pyro.sample("z", dist.TransformedDistribution(q, [stretch]))

    return guide


# %% [markdown]
# In two dimensions $\log p(x)$ is an integral over a lattice, which the model alone places; the
# ELBO is a mean over 1,000 draws. You will see one model, three guides, and what each loses: means
# over test images, with standard errors over images.

# %%
guides = {"trained": plane.guide, "narrow": scaled(plane, 0.3), "wide": scaled(plane, 2.0)}
exact = timed("evidence.quadrature", TESTED, evidence.quadrature, plane.model, plane.guide, test)
found, gap = {}, {}
for name, guide in guides.items():  # ELBO, log p(x) and k-hat of the same draws
    found[name] = evidence.summarise(plane.model, guide, test, with_khat=True)
    gap[name] = exact.log_evidence - found[name].elbo
table = pd.DataFrame({"ELBO": {name: mean(f.elbo) for name, f in found.items()}})
table["log p(x)"] = mean(exact.log_evidence)
table["gap = KL(q || p(z|x))"] = {name: mean(g) for name, g in gap.items()}
table

# %% [markdown]
# To look at it: the true posterior, in steps of grey that for a normal are 1, 2, 3 and 4 standard
# deviations, and a guide at 1 and 2. You will see it for the image whose gap is the median.

# %%
SIDE = 121
offsets = torch.cartesian_prod(*2 * [torch.linspace(-6, 6, SIDE)]).unsqueeze(1)  # (SIDE^2, 1, 2)
sd = exact.covariance.diagonal(dim1=1, dim2=2).sqrt()
lattice = exact.mean + offsets * sd  # 6 sd about each posterior, (SIDE^2, N, 2)
heights = exact.log_posterior({"z": lattice})

# %%
angle = torch.linspace(0, 2 * math.pi, 200)
circle = torch.stack([angle.cos(), angle.sin()])


def posterior(axes, n, title, colour=BLUE, factor=1.0):
    """Draw p(z|x_n), and the plane's guide with its standard deviations times a factor."""
    height = (heights[:, n] - heights[:, n].max()).reshape(SIDE, SIDE)
    z, q = lattice[:, n].reshape(SIDE, SIDE, 2), plane.encode(test[n : n + 1])
    axes.contourf(*z.unbind(-1), height, [-8, -4.5, -2, -0.5, 0], cmap="Greys", vmin=-11, vmax=4)
    for radius, label in ((1, "guide, 1 and 2 sd"), (2, None)):
        curve = q.mean[0, :, None] + radius * factor * q.stddev[0, :, None] * circle
        axes.plot(*curve, color=colour, lw=1.3, label=label)
    axes.set(xlabel="z[0]", title=title)


# %%
n = int(gap["trained"].argsort()[TESTED // 2])
figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
for axes, name, factor in zip(panels, guides, (1, 0.3, 2), strict=True):
    title = f"{name}: gap {gap[name][n]:.2f}, k-hat {found[name].khat[n]:.2f}"
    posterior(axes, n, title, COLOURS[name], factor)
panels[0].set(ylabel="z[1]")
plt.show()

# %% [markdown]
# ## 2. Pareto k-hat: are the importance weights to be trusted?
#
# With no lattice, $\log p(x)$ comes from weights $w = p(x, z)/q(z|x)$, $z \sim q$. Their mean is
# $p(x)$ on average; whether *your* mean is near it depends on their tail. $\hat k$ is the shape of
# the Pareto law fitted to the largest of them (Vehtari et al. 2024). Below 0.5 weights have a
# variance, and the mean of $K$ errs by sd$/\sqrt K$. From 0.5 to 0.7 they have none: the mean nears
# $p(x)$ more slowly, and its standard error says too little. Above 0.7 no practical $K$ is enough.
#
# For a posterior $\mathcal N(0, I)$ in the plane and a guide $\mathcal N(0, f^2 I)$, $f < 1$, the
# law holds exactly, with $k = 1 - f^2$; and KL$(q\|p) = f^2 - 1 - 2\log f$. So $k = 0.7$ is a guide
# of about half the posterior's width. You will see both against $f$: k-hat sounds an alarm on the
# left alone. *A guide that is too wide has bounded weights, hence a good k-hat, and a bound as
# loose as you like.*

# %%
torch.manual_seed(0)
f = torch.linspace(0.25, 3, 45)
z = f * torch.randn(DRAWS, 2, len(f))
log_w = (z.square() * (1 / f**2 - 1) / 2).sum(1)  # log p - log q, but for a constant
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.9))
left.plot(f, khat(log_w), ".", color=BLUE, label=f"k-hat of {DRAWS:,} weights")
left.plot(f[f < 1], (1 - f**2)[f < 1], color=INK, label="$1 - f^2$")
left.legend()
right.plot(f, f**2 - 1 - 2 * f.log(), color=INK)
for axes, label in ((left, "k-hat"), (right, "KL(q || p), nats")):
    axes.set(xlabel="f, width of the guide by the posterior's", ylabel=label)
plt.show()

# %% [markdown]
# Now the digits. The narrow guide is the *negative control*: a check that let it pass would be no
# check. You will see k-hat of all test images, and how far $\log p(x)$ by 1,000 draws is off.

# %%
table = pd.DataFrame()
figure, panels = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
for axes, (name, summary) in zip(panels, found.items(), strict=True):
    k, off = summary.khat, summary.evidence.log_evidence - exact.log_evidence
    axes.hist(k.clamp(-1, 2).numpy(), torch.linspace(-1, 2, 31).tolist(), color=COLOURS[name])
    axes.axvspan(0.5, 0.7, color="#dddddd", zorder=0)
    axes.set(title=name, xlabel="k-hat (grey: 0.5 to 0.7)")
    shares = [f"{rows.double().mean():.0%}" for rows in (k < 0.5, k > 0.7)]
    table.loc[name, ["k-hat < 0.5", "> 0.7"]] = shares
    table.loc[name, ["gap", "log p(x) is off by"]] = [mean(gap[name]), mean(off, 3)]
panels[0].set(ylabel="images")
plt.show()
table

# %% [markdown]
# Narrow and wide lose much the same, with k-hats at opposite ends. As a proposal the wide one is
# harmless: its weights give $\log p(x)$. As a bound to train by, or as an answer to "where is z?",
# it is as wrong as its gap. Which images are worst, under the trained guide? You will see the eight
# with the largest k-hat, and the eight with the smallest. (Section 7 shows why.)

# %%
k = timed("diagnostics.khat", TESTED, diagnostics.khat, plane.model, plane.guide, test)
order = k.khat.argsort(descending=True)
print(f"{int((~k.ok).sum())} of {TESTED} images are at {k.threshold:.2f} or more")
ends = order[:8], order[-8:]
labels = [[f"{v:.2f}" for v in k.khat[rows]] for rows in ends]
plots.mosaic([test[rows] for rows in ends], ["largest k-hat", "smallest"], labels, least=12)

# %% [markdown]
# ## 3. The evidence by importance sampling, and its intervals
#
# `evidence.iwae` gives $\log \frac1K \sum_k w_k$, on average a lower bound of $\log p(x)$ (Burda et
# al. 2016), the ELBO at $K = 1$. You will see, on the left, by how much on average, for each guide;
# on the right, the typical error under the trained guide, for images by their k-hat (of all draws:
# more draws look farther into the tail, and may find it heavier).

# %%
log_w = {n: log_weights(plane.model, g, test, num_particles=DRAWS) for n, g in guides.items()}
counts = [c for c in (1, 3, 10, 30, 100, 300, 1000, 3000) if DRAWS % (10 * c) == 0]
off = {}
for name, w in log_w.items():  # estimates of c draws each, less the true log p(x)
    means = [w.unflatten(0, (-1, c)).logsumexp(1) - math.log(c) for c in counts]
    off[name] = [m - exact.log_evidence for m in means]
k_of_all = khat(log_w["trained"])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3))
for name, values in off.items():
    left.plot(counts, [v.mean() for v in values], ".-", color=COLOURS[name], label=name)
limits = {"below 0.5": (-math.inf, 0.5), "0.5 to 0.7": (0.5, 0.7), "above 0.7": (0.7, math.inf)}
for (name, (low, high)), colour in zip(limits.items(), (BLUE, "#d9a441", RED), strict=True):
    if (rows := (k_of_all >= low) & (k_of_all < high)).any():
        rms = [v[:, rows].square().mean().sqrt() for v in off["trained"]]
        right.plot(counts, rms, ".-", color=colour, label=f"k-hat {name}: {int(rows.sum())} images")
right.plot(counts, torch.tensor(counts).rsqrt(), ":", color=INK, label=r"$1/\sqrt{K}$")
left.set(xscale="log", xlabel="draws K", ylabel="estimate - log p(x), mean, nats")
right.set(xscale="log", yscale="log", xlabel="draws K", ylabel="the same, rms, nats")
for axes in (left, right):
    axes.legend()
plt.show()

# %% [markdown]
# An interval must know when it does not know. `interval` gives $\pm z$ standard errors where k-hat
# is below 0.5 and more than 100 draws are effective (`trusted`). Elsewhere it has one end, by
# Markov's inequality, which holds whatever the weights: $\log p(x) \ge \log \hat p - \log 20$ with
# probability 0.95. You will see both kinds for 1,000 draws, the ELBO as the line at 0; the crosses,
# at the true $\log p(x)$, should lie within.

# %%
run = timed("evidence.iwae", TESTED, evidence.iwae, plane.model, plane.guide, test)
elbo = found["trained"].elbo
figure = plots.evidence_intervals(elbo, run.log_evidence, *run.interval(0.95))
truth = (exact.log_evidence - elbo)[(run.log_evidence - elbo).argsort()]  # in its order
figure.axes[0].plot(range(1, TESTED + 1), truth, "x", color=INK, ms=5)
figure

# %% [markdown]
# You will see how many hold it over many runs, each image being asked again and again. Two-sided
# ones should 95 times of 100, and may fall a little short: luck with the largest weights makes a
# run look trustworthy. The narrow guide is hardly ever trusted: see what becomes of it when it is.

# %%
again, truth = test.repeat(SEEDS, 1, 1), exact.log_evidence.repeat(SEEDS)
for name, guide in guides.items():
    run = evidence.iwae(plane.model, guide, again)
    low, high = run.interval(0.95)
    inside = (low <= truth) & (truth <= high)
    for kind, rows in (("two-sided", run.trusted), ("one-sided", ~run.trusted)):
        print(f"{name:>8}, {kind}: {int(inside[rows].sum())} of {int(rows.sum())}")

# %% [markdown]
# ## 4. Annealing: $\log p(x)$ from both sides
#
# In eight dimensions there is no lattice. Annealed importance sampling (Neal 2001) does not need
# the guide to be near: its chains go from there, or from the prior, to the posterior in $T$ steps,
# and remain a lower bound on average. Which $T$ is enough? Ask data that the *model* drew: their
# $z$ is an exact draw of $p(z|x)$, from which the same chains run back and make an upper bound
# (bidirectional Monte Carlo, Grosse et al. 2015). You will see both bounds meet as $T$ grows, soon
# from the guide, late from the prior. Zero is midway between the guide's last two.

# %%
both, pair = {}, (deep.model, deep.guide, few)
for start in ("prior", "guide"):
    for t in TEMPERATURES:
        how = {"start": start, "num_temperatures": t, "num_chains": 8}
        both[start, t] = timed("evidence.bidirectional", FEW, evidence.bidirectional, *pair, **how)
zero = both["guide", TEMPERATURES[-1]].log_evidence
assert all(torch.equal(run.x, both["guide", 3].x) for run in both.values())  # the same data

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
for axes, start in zip(panels, ("guide", "prior"), strict=True):
    for side, colour, marker in (("upper", RED, "v"), ("lower", BLUE, "^")):
        off = torch.stack([getattr(both[start, t], side) - zero for t in TEMPERATURES])
        bars = {"yerr": 2 * off.std(1) / FEW**0.5, "capsize": 3, "marker": marker}
        axes.errorbar(TEMPERATURES, off.mean(1), color=colour, label=f"{side} bound", **bars)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set(title=f"from the {start}", xscale="log", xlabel="temperatures T")
panels[0].set(ylabel=f"nats, mean of {FEW} data, 2 se")
panels[0].legend()
plt.show()
print({f"{s}, T = {t}": mean(run.gap, 3) for (s, t), run in both.items()})

# %% [markdown]
# The gap between the bounds is what `ais` at that $T$ may be off on real data, as far as these are
# like the simulated ones. You will see `ais` beside importance sampling, paired by image; and in
# the plane beside the truth, from the *narrow* guide that importance sampling failed with.

# %%
T = {"num_temperatures": TEMPERATURES[-1]}
annealed = timed("evidence.ais", FEW, evidence.ais, *pair, **T)
weighted = evidence.iwae(*pair, num_particles=10_000)
print("deep, annealed - 10,000 draws: ", mean(annealed.log_evidence - weighted.log_evidence, 3))
narrow = evidence.ais(plane.model, guides["narrow"], few, **T)
print("plane, annealed - log p(x):    ", mean(narrow.log_evidence - exact.log_evidence[:FEW], 3))

# %% [markdown]
# ## 5. The gap taken apart: the family and the network
#
# A guide may be wrong because no normal is right, or because the network does not find the right
# normal. `evidence.gaps` finds the best $q^*$ of a family for each datum (Cremer et al. 2018), and
# cuts the gap in two: *approximation*, $\log p(x) - \text{ELBO}(q^*)$, is the family's part,
# *amortization*, $\text{ELBO}(q^*) - \text{ELBO}$, the network's. You will see it for the deep pair
# with $q^*$ of three families, and for another pair, trained with a full-rank guide.

# %%
full = trained(8, "full-rank-normal")
theirs = full.model, full.guide, few
options, cut = {"log_evidence": annealed}, {}
for name, options["family"] in (("flow", "flow"), ("full-rank", "full-rank"), ("diagonal", "own")):
    gaps = timed("evidence.gaps", FEW, evidence.gaps, *pair, **options)
    cut[f"diagonal guide, best {name} q"] = gaps
known = evidence.ais(*theirs, **T)
cut["full-rank guide, best full-rank q"] = evidence.gaps(*theirs, log_evidence=known)
means = {name: g.means() for name, g in cut.items()}
parts = [[m[part] for m in means.values()] for part in ("approximation", "amortization")]
plots.gap_bars(list(means), *parts)

# %% [markdown]
# The amortization gap can be had back with no training: `pairs.refined` makes a guide that starts
# from the network's $q(z|x)$ and ascends the ELBO of the datum at hand (Kim et al. 2018). You will
# see it climb towards the best $q^*$ of its family. What is left above is the family's.

# %%
steps, elbos, how = (0, 1, 2, 5, 10, 20, 40), [], {"num_particles": 200}
for count in steps:
    better = pairs.refined(deep.model, deep.guide, steps=count)
    elbos.append(timed("pairs.refined", FEW, evidence.summarise, *better, few, **how).elbo)
gains = torch.stack(elbos) - elbos[0]  # the noise is the same, and no steps are the guide itself
own = cut["diagonal guide, best diagonal q"]
figure, axes = plt.subplots(figsize=(7, 2.9))
bars = {"yerr": 2 * gains.std(1) / FEW**0.5, "capsize": 3, "marker": "o", "color": BLUE}
axes.errorbar(steps, gains.mean(1), label="refined guide, 2 se", **bars)
axes.axhline(own.amortization.mean(), color=GREEN, ls="--", label="best q* of the family")
axes.axhline((own.log_evidence - own.elbo).mean(), color=INK, label="log p(x)")
axes.set(xlabel="steps of refinement", ylabel="nats above the guide's ELBO")
axes.legend()
plt.show()

# %% [markdown]
# ## 6. Calibration
#
# The measures so far ask of a datum. Calibration asks of the guide as a whole, where $z$ is known:
# draw $z^*, x^*$ from the model, and rank $z^*$ among draws of $q(z|x^*)$. If $q$ is the posterior
# all ranks are equally likely (Talts et al. 2018). In ranks of $z$, high ends mean too narrow, a
# hump too wide. Probabilistic PCA has its exact posterior as the guide, and must pass; at 0.7 of
# its width it must fail. You will see both beside the VAE of the plane, refined and as trained.
# Grey: three standard deviations of a bar.

# %%
linear = pairs.ppca(data.load("digits", dtype=torch.float64).train, 2)
asked = {
    "pPCA, exact": (linear.model, linear.guide),
    "pPCA, narrow": (linear.model, scaled(linear, 0.7)),
    "VAE, refined": pairs.refined(plane.model, plane.guide, steps=10),
    "VAE, trained": (plane.model, plane.guide),
}
ranks, how = {}, ("diagnostics.calibration", SIMULATIONS, diagnostics.calibration)
for name, pair in asked.items():
    ranks[name] = timed(*how, *pair, test, num_simulations=SIMULATIONS)

# %%
figure, panels = plt.subplots(2, 4, figsize=(10, 3.8), sharex=True)
expected = SIMULATIONS / 16
for column, (name, result) in zip(panels.T, ranks.items(), strict=True):
    verdict = f"{name}: {'passes' if result.ok else 'FAILS'}"
    for axes, i, heading in zip(column, (0, -1), (f"{verdict}\n", ""), strict=True):
        axes.bar(range(16), result.counts[i], color=BLUE if result.ok else RED)
        axes.axhspan(*(expected + s * expected**0.5 for s in (-3, 3)), color=GREY, alpha=0.3)
        p = float(result.p_values[i])
        axes.set_title(f"{heading}{result.names[i]}: p = {p:.1g}", fontsize=9)
    column[1].set(xlabel="rank, in 16 bins")
plt.setp(panels[:, 0], ylabel="simulations")
plt.show()

# %% [markdown]
# A p-value says that a guide is not exact, not how far off it is: with simulations enough every
# trained guide fails. The picture says how far. And all of it is of the model's own data.
#
# ## 7. NUTS beside the guide
#
# For a few data there is a reference that owes nothing to the guide's family: Hamiltonian Monte
# Carlo. You will see, for the images of smallest and largest k-hat and of largest gap, the true
# posterior in grey, NUTS's draws over it, and the guide. A bit of far grey outside the lines makes
# k-hat large: a rare draw there has a large weight. Lines that hold little of the dark make the gap
# large.

# %%
chains, how = {}, {"num_samples": CHAIN, "num_warmup": CHAIN // 2, "num_chains": 2}
worst = int(order[0])
figure, panels = plt.subplots(1, 3, figsize=(10, 3.7))
for axes, n in zip(panels, (int(order[-1]), worst, int(gap["trained"].argmax())), strict=True):
    x = test[n : n + 1]
    chains[n] = timed("evidence.nuts", 1, evidence.nuts, plane.model, plane.guide, x, **how)
    posterior(axes, n, f"image {n}: k-hat {k.khat[n]:.2f}, gap {gap['trained'][n]:.2f}")
    draws = chains[n].samples["z"].flatten(0, 1)
    axes.scatter(*draws.T, s=4, color=RED, lw=0, alpha=0.6, label="NUTS", zorder=1.5)
    axes.inset_axes((0.01, 0.82, 0.17, 0.17), xticks=[], yticks=[]).imshow(x[0], cmap="gray_r")
panels[0].set(ylabel="z[1]")
panels[2].legend(loc="lower right")
plt.show()

# %% [markdown]
# In ArviZ both have one form, from `to_arviz` and `convert.posterior_to_arviz`. You will see the
# intervals of the image with the largest k-hat, 94 % thin and 50 % thick.

# %%
x, label = test[worst : worst + 1], {"data": [worst]}
of_guide = convert.to_arviz(plane.model, plane.guide, x, coords=label)
of_nuts = convert.posterior_to_arviz(chains[worst].samples, datum=worst)
import arviz as az  # loaded by to_arviz, which keeps 0.2x's announcement of 1.0 to itself

if int(az.__version__.split(".")[0]) < 1:
    options = {"model_names": ["guide", "NUTS"], "combined": True, "figsize": (7, 2.4)}
    az.plot_forest([of_guide, of_nuts], var_names=["z"], textsize=9, **options)
else:
    az.plot_forest({"guide": of_guide, "NUTS": of_nuts}, var_names=["z"], combined=True)
plt.show()

# %% [markdown]
# ## 8. Which measure, when, at what cost
#
# You will see what each answers, what it needs, and the seconds a datum that the cells above took
# (in calibration, a simulation). The machine was busy: compare them with one another.

# %%
rows = {
    "diagnostics.khat": ("which data are worst?", "nothing; blind to a guide too wide"),
    "evidence.iwae": ("log p(x)", "a good k-hat; else a bound"),
    "evidence.quadrature": ("log p(x), exact", "at most 3 latent numbers"),
    "evidence.ais": ("log p(x)", "continuous z; no good guide"),
    "evidence.bidirectional": ("are AIS's settings enough?", "data simulated by the model"),
    "evidence.gaps": ("the family, or the network?", "log p(x), a guide with rsample"),
    "pairs.refined": ("the network's part, had back", "a normal guide"),
    "diagnostics.calibration": ("is it right as a whole?", "data simulated by the model"),
    "evidence.nuts": ("what is p(z|x) like?", "one datum at a time"),
}
table = pd.DataFrame.from_dict(rows, orient="index", columns=["asks", "needs"])
table["seconds a datum"] = [f"{seconds[name]:.2g}" for name in rows]
table

# %% [markdown]
# ---
# In short: k-hat always; where it is good, `iwae` with its interval; where bad, `ais`, checked by
# `bidirectional`; then `gaps`: a richer guide, or a better network? All of this was one seed of one
# small model; the errors are over images or draws, and say nothing of another training.
#
# The sizes of this run: the small ones if and only if it is a smoke run.

# %%
assert SMOKE == (TESTED < 50) == (len(log_w["wide"]) < 5000) == (len(draws) < 200)
print(f"smoke run: {SMOKE}; {EPOCHS} epochs, {TESTED} images, up to {DRAWS:,} draws")
