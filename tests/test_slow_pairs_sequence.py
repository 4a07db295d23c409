"""A state-space model recovered from its series. Some minutes each; they print figures."""

import math

import pytest
import torch
from state_space import filtered, parameters_of, simulate

from pyrovae import build, evidence, fit
from pyrovae.optimise import cosine

pytestmark = pytest.mark.slow

SEEDS, STEPS = (1, 2, 3), 10


@pytest.mark.parametrize("posterior", ["mean-field-normal", "full-rank-normal"])
def test_a_state_space_model_is_recovered(posterior):
    """Held-out mean log p(x) by IWAE within 1 % of the Kalman filter's at the true parameters."""
    ratios = []
    for seed in SEEDS:
        x, held_out = simulate(2000, STEPS, seed=seed), simulate(500, STEPS, seed=100 + seed)
        pair = build(
            data_shape=(STEPS, 3), latent_dim=2, likelihood="normal", posterior=posterior,
            hidden=(), pair="sequence-vae", pair_options={"linear": True, "width": 32}, seed=seed,
        )  # fmt: skip
        untrained = evidence.iwae(pair.model, pair.guide, held_out, num_particles=100)
        fit(pair.model, pair.guide, x.float(), epochs=50, lr=0.02, seed=seed, schedule=cosine)
        found = evidence.summarise(pair.model, pair.guide, held_out, num_particles=500)
        truth, log_p = filtered(held_out), found.evidence.log_evidence
        learnt = filtered(held_out, parameters_of(pair))
        error = (log_p - truth).std() / math.sqrt(len(truth))
        print(
            f"{posterior}, seed {seed}: filter {truth.mean():.3f}; IWAE-500 {log_p.mean():.3f}, "
            f"{(log_p - truth).mean():.3f} +- {error:.3f} off; filter at the learnt parameters "
            f"{learnt.mean():.3f}; ELBO {found.elbo.mean():.3f}; untrained IWAE-100 "
            f"{untrained.log_evidence.mean():.3f}"
        )
        ratios.append(float(log_p.mean() / truth.mean()) - 1)
        assert abs(float(untrained.log_evidence.mean() / truth.mean()) - 1) > 0.1  # control
        assert abs(float(log_p.mean() - learnt.mean())) < 0.05
    ratio = torch.tensor(ratios)
    print(
        f"{posterior}: off by {100 * ratio.mean():.2f} +- {100 * ratio.std() / 3**0.5:.2f} % over "
        f"{len(SEEDS)} seeds"
    )
    assert (ratio.abs() < 0.01).all()
