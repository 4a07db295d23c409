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

from pyrovae import build, data, fit, log_weights, plots
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
SET, IMAGES, TESTED, HIDDEN = ("mnist", 15_000, 400, 300) if MNIST else ("digits", 1400, 150, 100)
EPOCHS, PLANE_EPOCHS = (10, 8) if MNIST else (80, 80)
PARTICLES, SIDE, COMPONENTS = 1000, 240, 100
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
# | word | $p(z)$ | |
# |---|---|---|
# | `standard-normal` | $\mathcal N(0, I)$ | Kingma & Welling 2014 |
# | `mixture-of-normals` | $\sum_k w_k\,\mathcal N(m_k, \operatorname{diag} s_k^2)$, all learnt | |
# | `vamp-prior` | $\frac1K \sum_k q(z\vert u_k)$, pseudo-inputs $u_k$ learnt | Tomczak & Welling 2018 |
# | `flow-prior` | $\mathcal N(f(z); 0, I)\,\lvert\det df/dz\rvert$, $f$ of splines | Durkan et al. 2019 |

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
    return vae, fit(*pair, train, validation=held_out, epochs=epochs, seed=seed, **settings)


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
# In two dimensions that can be looked at. A lattice over the part of the plane where the codes lie:

# %%
plane, histories = {}, {}
for prior in WORDS:
    plane[prior], histories[prior] = trained(prior, 2, PLANE_EPOCHS)


# %%
def lattice(vae):
    """Return points (SIDE, SIDE, 2) that cover the codes, and the area of a cell."""
    q = vae.encode(x).base_dist
    low, high = ((q.loc + s * q.scale) for s in (-5, 5))
    low, high = low.amin(0), high.amax(0)
    sides = [torch.linspace(low[i], high[i], SIDE) for i in (0, 1)]
    area = ((high - low) / (SIDE - 1)).prod()
    return torch.stack(torch.meshgrid(*sides, indexing="xy"), -1), area


def aggregate(vae, z):
    """log q(z), the mixture of the posteriors of all of x; in parts, which fit into memory."""
    q = vae.encode(x).base_dist
    mixture = MixtureOfNormals(q.loc, q.scale, torch.zeros(len(x)))
    return torch.cat([mixture.log_prob(part) for part in z.reshape(-1, 2).split(2000)])
