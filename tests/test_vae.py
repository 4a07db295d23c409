import copy
import json

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyrovae import VAE, build, fit, likelihoods, posteriors, priors
from pyrovae.pairs.names import by_name, hyphenated, level_options, normalised

X = (torch.rand(32, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def make(seed=0, **options):
    return build(data_shape=(4,), latent_dim=2, hidden=(8,), seed=seed, **options)


def train(pair, how):
    if how == "fit":
        fit(pair.model, pair.guide, X, epochs=2, batch_size=8, lr=0.01)
        return
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), how())
    for _ in range(3):
        svi.step(X)


def moved(before, after):
    return all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def weights(pair):
    return [p.detach().clone() for p in pair.parameters()]


def loaded_by_assignment(vae):
    new = make(seed=1)
    train(new, Trace_ELBO)  # its names are taken by tensors that the next line throws away
    new.load_state_dict({k: v.clone() for k, v in vae.state_dict().items()}, assign=True)
    return new


@pytest.mark.parametrize("how", [Trace_ELBO, TraceMeanField_ELBO, "fit"])
@pytest.mark.parametrize(
    "another", [lambda vae: make(), copy.deepcopy, copy.copy, loaded_by_assignment]
)
def test_alike_pairs_train_and_share_nothing(how, another):
    first = make()
    train(first, how)
    second = another(first) if another is not copy.copy else copy.deepcopy(copy.deepcopy(first))
    for trained, left in ((second, first), (first, second), (second, first)):
        before, others = weights(trained), weights(left)
        train(trained, how)
        assert moved(before, weights(trained))
        assert all(torch.equal(a, b) for a, b in zip(others, weights(left), strict=True))


def test_a_name_that_two_modules_share_is_the_trap_this_test_can_see():
    """Negative control: as Pyro's own examples do it, the second pair is never trained."""
    pairs = []
    for _ in range(2):
        vae = make()

        def model(x, vae=vae):
            pyro.module("vae", vae)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", vae.prior())
                pyro.sample("x", vae.likelihood(z), obs=x)

        def guide(x, vae=vae):
            pyro.module("vae", vae)
            with pyro.plate("data", len(x)):
                pyro.sample("z", vae.posterior(x))

        pairs.append((vae, model, guide))
    changed = []
    with pyro.get_param_store().scope():
        for vae, model, guide in pairs:
            before = weights(vae)
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            svi.step(X)
            changed.append(moved(before, weights(vae)))
    assert changed == [True, False]


def test_training_goes_on_after_a_clear_of_the_store():
    vae = make()
    train(vae, Trace_ELBO)
    pyro.clear_param_store()
    before = weights(vae)
    train(vae, Trace_ELBO)
    assert moved(before, weights(vae))


def test_a_frozen_part_stays_as_it_is_without_a_word():
    for how in ("fit", Trace_ELBO):
        vae = make()
        vae.likelihood.requires_grad_(False)
        before = [p.clone() for p in vae.likelihood.parameters()], list(weights(vae.posterior))
        train(vae, how)  # a warning would be an error
        assert all(
            torch.equal(a, b) for a, b in zip(before[0], vae.likelihood.parameters(), strict=True)
        )
        assert moved(before[1], weights(vae.posterior))


def test_encode_decode_sample_reconstruct():
    vae = make(likelihood="binomial", likelihood_options={"total_count": 5})
    assert vae.encode(X.double()).event_shape == (2,)
    assert vae.decode(torch.zeros(3, 7, 2)).batch_shape == (3, 7)
    x = vae.sample(9)
    assert x.shape == (9, 4) and torch.equal(x, x.round())
    assert torch.equal(x, vae.sample(9)) and not torch.equal(x, vae.sample(9, seed=1))
    assert not torch.equal(vae.sample(9, mean=True), x)
    assert vae.reconstruct(X).shape == X.shape
    assert vae.sample(0).shape == (0, 4)
    with pytest.raises(ValueError, match="n to be a whole number >= 0; got -1"):
        vae.sample(-1)


def test_context():
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(2, (4,), context_dim=3),
        posteriors.MeanFieldNormal((4,), 2, context_dim=3),
    )
    c = torch.randn(32, 3)
    before = weights(vae)
    fit(vae.model, vae.guide, (X, c), epochs=1, lr=0.01)
    assert moved(before, weights(vae))
    assert vae.sample(32, c).shape == (32, 4)
    with pytest.raises(ValueError, match="3 numbers a datum in all; got 0"):
        fit(vae.model, vae.guide, X)


def test_parts_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"one latent_dim; got \{'prior': 3, 'likelihood': 2"):
        VAE(
            priors.StandardNormal(3),
            likelihoods.Bernoulli(2, (4,)),
            posteriors.MeanFieldNormal((4,), 2),
        )


def test_build_is_reproducible_and_recorded():
    options = {
        "prior": "vamp-prior", "prior_options": {"num_components": 3, "clamp": [0.0, 16.0]},
        "likelihood": "Normal", "likelihood_options": {"variance": "fixed:0.1"},
        "posterior": "full_rank_normal", "net": "gated-mlp", "seed": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    vae = build(data_shape=(4,), latent_dim=2, hidden=(8, 6), **options)
    assert torch.equal(torch.rand(1), expected)
    again = build(**json.loads(json.dumps(vae.config)))
    assert all(torch.equal(a, b) for a, b in zip(weights(vae), weights(again), strict=True))
    assert vae.likelihood.variance == likelihoods.Fixed(0.1)
    assert vae.prior.clamp == (0.0, 16.0)
    widths = [m.out_features for m in vae.likelihood.net.hidden if hasattr(m, "out_features")]
    assert widths == [12, 16]  # mirrored, two linear maps a gate
    other = make(seed=4)
    assert moved(weights(make(seed=3))[:1], weights(other)[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "vamp"}, "prior to be one of .*vamp-prior.*; got 'vamp'"),
        ({"likelihood": "poison"}, "likelihood to be one of bernoulli, .*; got 'poison'"),
        ({"net": "conf"}, "net to be one of conv, .*; got 'conf'"),
        ({"pair": "gan"}, "pair to be one of"),
        ({"latent_dim": 0}, "latent_dim to be a positive whole number; got 0"),
        ({"data_shape": ()}, "data_shape to hold positive whole numbers"),
        ({"prior_options": {"k": 3}}, r"options of prior standard-normal among \(none\); got 'k'"),
        ({"net_options": {"depth": 3}}, "options of net mlp among activation, weight-init|got 'de"),
        (
            {"likelihood": "normal", "likelihood_options": {"variance": "learnt"}},
            "variance to be one of fixed, per-dimension, predicted, shared; got 'learnt'",
        ),
        (
            {"likelihood": "normal", "likelihood_options": {"variance": "fixed:a"}},
            r"variance=fixed\[:numbers\]; got 'fixed:a'",
        ),
        ({"likelihood": "binomial", "likelihood_options": {"total_count": "x"}}, "total_count"),
        ({"prior": "vamp-prior", "prior_options": {"clamp": ["a", "b"]}}, "clamp to be of type"),
        ({"prior": "vamp-prior", "prior_options": {"clamp": [0, 1, 2]}}, "clamp to be of type"),
        ({"prior": "exemplar-prior", "prior_options": {"exemplars": [[1]]}}, "exemplars to be of"),
        ({"posterior_options": {"input_scale": [1]}}, "input_scale to be of type float"),
        ({"posterior_options": {"missing": 1}}, "missing to be of type bool; got 1"),
        (
            {"prior": "mixture-of-normals", "prior_options": {"num_components": "x"}},
            "num_components",
        ),
    ],
)
def test_build_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"data_shape": (4,), "latent_dim": 2, "hidden": (8,)} | options)


def test_names():
    assert normalised("Trace-Mean_Field_ELBO") == normalised("trace-mean-field") == "tracemeanfield"
    assert hyphenated("VampPrior") == "vamp-prior"
    assert hyphenated("TraceMeanField_ELBO") == "trace-mean-field"
    assert by_name("net", "GATED-mlp", {"gated_mlp": 1}) == 1


def test_level_options():
    options = level_options(17, "vamp-prior", "binomial", "mean-field-normal")
    assert options["likelihood_options"] == {"total_count": 16}
    assert options["posterior_options"] == {"input_scale": 1 / 16}
    assert options["prior_options"]["clamp"] == [0.0, 16.0]
    plain = level_options(17, "standard-normal", "normal", "full-rank-normal")
    assert plain["prior_options"] == plain["likelihood_options"] == {}
