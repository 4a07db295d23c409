import math

import numpy as np
import pairs_of_users as users
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch.utils.data import Dataset, TensorDataset

from pyrovae import build, fit
from pyrovae.data import binarize
from pyrovae.importance import log_terms
from pyrovae.objectives import ManualELBO
from pyrovae.optimise import cosine
from pyrovae.training import trainee

X = (torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) > 0.3).float()


def make(seed=0, **options):
    return build(data_shape=(4,), latent_dim=2, hidden=(8,), seed=seed, **options)


def weights(vae):
    return torch.cat([p.detach().flatten().clone() for p in vae.parameters()])


def fitted(data=X, **options):
    vae = make()
    history = fit(vae.model, vae.guide, data, **{"epochs": 2, "batch_size": 16} | options)
    return vae, history


class Rows(Dataset):
    """Read row by row; items are x or (x, c)."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, i):
        row = tuple(t[i] for t in self.tensors)
        return row if len(row) > 1 else row[0]


def test_a_seed_is_bit_identical_and_leaves_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = weights(fitted()[0])
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, weights(fitted()[0]))
    assert not torch.equal(first, weights(fitted(seed=1)[0]))


@pytest.mark.parametrize(
    "data",
    [X.numpy(), X.numpy().astype(np.uint8), X.tolist(), (X,), TensorDataset(X), X.double()],
    ids=["array", "uint8", "list", "tuple", "TensorDataset", "float64"],
)
def test_data_in_every_form_give_the_same_weights(data):
    assert torch.equal(weights(fitted(data)[0]), weights(fitted()[0]))


def test_a_dataset_is_read_row_by_row():
    vae, history = fitted(Rows(X), epochs=8, lr=0.01)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize(
    "objective",
    [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, ManualELBO],
    ids=lambda o: o.__name__,
)
def test_objectives_train(objective):
    _, history = fitted(objective=objective(), epochs=15, lr=0.02)
    assert history["loss"][-1] < history["loss"][0] - 0.1


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr)


@pytest.mark.parametrize("size", [None, 50, 5000])
def test_one_step_is_the_gradient_of_the_mean_per_datum(size):
    """Whatever the plate's size says, the step is lr times the gradient of the mean of -ELBO."""
    decoder, encoder = users.networks()
    x, c = users.batch(50)
    model, guide = users.conditional(decoder, encoder, size)
    before = decoder.bias.detach().clone()
    fit(model, guide, (x, c), Trace_ELBO(), epochs=1, batch_size=50, lr=1e-3, optimizer=sgd)
    step = (decoder.bias.detach() - before) / 1e-3
    # E_q of x - sigmoid(logits) over the batch: the noise differs, so by its own spread
    with torch.no_grad():
        loc, log_scale = encoder(torch.cat([x, c], -1)).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn(200, 50, 2)
        logits = decoder(torch.cat([z, c.expand(200, 50, 1)], -1))
        gradients = (x - logits.sigmoid()).mean(1)
    assert bool(((step - gradients.mean(0)).abs() < 5.5 * gradients.std(0)).all())


def test_the_short_last_batch_weighs_less():
    """With lr ~ 0 the epoch's loss is the mean over data, not over batches."""
    x = torch.cat([torch.zeros(8, 4), torch.ones(1, 4)])
    vae = make()
    vae.likelihood.start_at_mean(torch.full((9, 4), 0.01))
    options = {"epochs": 1, "lr": 1e-12, "optimizer": sgd}
    small = fit(vae.model, vae.guide, x, batch_size=8, **options)["loss"][0]
    whole = fit(vae.model, vae.guide, x, batch_size=100, **options)["loss"][0]
    assert small == pytest.approx(whole, rel=0.15)  # batch means: 2 to 4 times as much


def test_losses_are_per_datum_and_terms_add_up():
    vae, history = fitted(validation=X, epochs=3)
    record = history.epochs[-1]
    # the validation loss takes the closed KL, the terms a sampled one, each one draw
    assert record["validation_loss"] == pytest.approx(
        record["kl"] - record["reconstruction"], abs=0.5
    )
    assert set(record) == {
        "epoch", "loss", "validation_loss", "reconstruction", "kl", "beta", "lr", "seconds",
    }  # fmt: skip
    table = history.to_dataframe()
    assert list(table["epoch"]) == [1, 2, 3] and len(history) == 3
    with pytest.raises(KeyError, match="expected one of epoch, loss"):
        history["elbow"]


def test_schedule_and_beta_reach_the_history():
    _, history = fitted(epochs=4, schedule=cosine, lr=0.1, beta=lambda epoch: epoch / 3)
    assert history["beta"] == [0, 1 / 3, 2 / 3, 1]
    rates = history["lr"]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.02


@pytest.mark.parametrize("objective", [TraceMeanField_ELBO, Trace_ELBO, ManualELBO])
def test_beta_scales_the_kl_and_validation_is_at_one(objective):
    losses = {}
    for beta in (0.0, 1.0):
        mine = objective()
        options = {"epochs": 1, "lr": 1e-12, "optimizer": sgd, "batch_size": 50}
        _, history = fitted(objective=mine, beta=beta, validation=X, **options)
        losses[beta] = history.epochs[0]
        assert getattr(mine, "beta", 1.0) == 1.0
    assert losses[0.0]["validation_loss"] == losses[1.0]["validation_loss"]
    difference = losses[1.0]["loss"] - losses[0.0]["loss"]
    assert difference == pytest.approx(losses[1.0]["kl"], abs=0.35) and difference > 0.01


def test_an_objectives_own_beta_is_kept():
    mine = ManualELBO(beta=4.0)
    assert fitted(objective=mine)[1]["beta"] == [4.0, 4.0] and mine.beta == 4.0
    assert fitted(objective=mine, beta=2.0)[1]["beta"] == [2.0, 2.0] and mine.beta == 4.0


def test_patience_counts_at_full_beta_and_restores_the_best():
    generator = torch.Generator().manual_seed(1)
    noise = (torch.rand(30, 4, generator=generator) > 0.5).float()
    vae = make()
    vae.likelihood.start_at_mean(noise)
    seen = []

    def keep(epoch, record):
        seen.append((record["validation_loss"], weights(vae)))

    history = fit(
        vae.model, vae.guide, X[:6] * 0, validation=noise, epochs=300, lr=0.05, patience=5,
        beta=lambda epoch: min(1.0, (epoch + 1) / 4), callbacks=[keep],
    )  # fmt: skip
    losses = [loss for loss, _ in seen]
    assert losses.index(min(losses)) < 3  # the best of all came before full beta, and is passed by
    assert history.best_epoch == 4 + losses[3:].index(min(losses[3:]))
    assert len(history) == history.best_epoch + 5 < 300
    assert torch.equal(weights(vae), seen[history.best_epoch - 1][1])


def test_validation_batches_are_weighed_by_their_rows(monkeypatch):
    x = torch.cat([torch.zeros(40, 4), torch.ones(10, 4)])
    vae = make()
    vae.likelihood.start_at_mean(torch.full((9, 4), 0.01))
    losses = []
    for rows in (40, 1024):  # in batches of 40 and 10, and in one
        monkeypatch.setattr(trainee, "EVALUATION_ROWS", rows)
        options = {"epochs": 1, "lr": 1e-12, "optimizer": sgd, "validation": x}
        losses.append(fit(vae.model, vae.guide, x, **options)["validation_loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # unweighted: 2.5 times as much


def test_clip_norm_bounds_the_step():
    before = weights(make())
    vae, _ = fitted(epochs=1, batch_size=50, lr=1.0, optimizer=sgd, clip_norm=1e-3)
    assert (weights(vae) - before).norm() == pytest.approx(1e-3, rel=1e-3)


def test_transform_is_drawn_afresh_each_epoch():
    grey = torch.full((20, 4), 0.5)
    drawn = []

    def transform(batch, generator):
        drawn.append(binarize(batch, generator))
        return drawn[-1]

    fitted(grey, transform=transform, epochs=2, batch_size=20)
    assert all(set(d.unique().tolist()) == {0.0, 1.0} for d in drawn)
    assert len({tuple(d.flatten().tolist()) for d in drawn}) >= 3


def test_transform_gets_the_tuple_where_there_is_context():
    decoder, encoder = users.networks()
    x, c = users.batch()
    seen = []

    def transform(batch, generator):
        seen.append(len(batch))
        return batch

    fit(*users.conditional(decoder, encoder), (x, c), epochs=1, transform=transform)
    assert set(seen) == {2}


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (X * 0.5, {}, r"site 'x'.*Bernoulli.*binarise"),
        (torch.cat([X, X[:1] * math.nan]), {}, "expected x to be finite"),
        (X[:0], {}, "at least one row"),
        (Rows(X[:0]), {}, "at least one item"),
        (torch.ones(5, 3), {}, r"input of shape \(..., 4\)"),
        (X, {"validation": X * 0.5}, "binarise"),
        (X, {"epochs": 0}, "epochs to be a positive whole number; got 0"),
        (X, {"batch_size": 2.5}, "batch_size to be a positive"),
        (X, {"lr": -1.0}, "lr to be positive and finite; got -1.0"),
        (X, {"lr": math.nan}, "lr to be positive and finite"),
        (X, {"clip_norm": 0.0}, "clip_norm to be positive"),
        (X, {"patience": 3}, "validation data with patience"),
        (X, {"beta": -0.5}, "beta to be finite and >= 0"),
        (X, {"compile": "sometimes"}, "compile to be 'auto', 'always' or 'never'"),
    ],
)
def test_bad_requests_train_nothing(data, options, message):
    vae = make()
    before = weights(vae)
    with pytest.raises(ValueError, match=message):
        fit(vae.model, vae.guide, data, **options)
    assert torch.equal(weights(vae), before)


def test_first_bad_row_is_named_in_the_whole_data():
    x = X.repeat(100, 1)
    x[4321, 2] = 0.25
    with pytest.raises(ValueError, match=r"got 1 of .* the first 0.25 at index \(4321, 2\)"):
        fitted(x)


def test_a_loss_that_is_not_finite_ends_the_fit():
    with pytest.raises(FloatingPointError, match="in epoch .*try a lower lr"):
        fitted(epochs=50, lr=1e6, optimizer=sgd)


def test_parameters_that_are_not_finite_end_the_fit():
    with pytest.raises(FloatingPointError, match="after epoch 1.*try a lower lr|the loss is"):
        fitted(epochs=3, lr=1e38, optimizer=sgd, batch_size=50)


def test_a_pair_with_nothing_to_train_is_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="pair with parameters; got none"):
        fit(users.plain_model, guide, torch.randn(5, users.D))


def test_bare_params_start_from_and_return_to_the_callers_store():
    x = torch.randn(64, users.D, generator=torch.Generator().manual_seed(0)) + 1
    with pyro.get_param_store().scope():
        store = pyro.get_param_store()
        pyro.param("scale", torch.tensor(5.0), constraint=dist.constraints.positive)
        pyro.param("other", torch.tensor(1.0))
        fit(users.plain_model, users.plain_guide, x, epochs=1, lr=1e-6)
        assert store["scale"].item() == pytest.approx(5.0, rel=1e-3)  # not 0.7
        assert set(store.keys()) == {"scale", "weight", "other"}
        fit(users.plain_model, users.plain_guide, x, epochs=500, lr=0.05)
        # the exact posterior has precision I + D 11', and z1, z2 are alike: sd^2 = 1 / (1 + D)
        assert store["scale"].item() == pytest.approx(1 / math.sqrt(1 + users.D), rel=0.15)
        assert store["scale"].unconstrained().item() == pytest.approx(store["scale"].log().item())


def test_modules_leave_no_trace_in_the_callers_store():
    with pyro.get_param_store().scope():
        fitted()
        assert not pyro.get_param_store().keys()


def test_a_pair_of_pyro_modules():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder = PyroModule[torch.nn.Linear](2, 4)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.ones(2), constraint=dist.constraints.positive)
            self.encoder = PyroModule[torch.nn.Linear](4, 2)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), self.scale).to_event(1))

    model, guide = Model(), Guide()
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    with pyro.get_param_store().scope():
        history = fit(model, guide, X, epochs=30, lr=0.02)
        assert not pyro.get_param_store().keys()
    after = [*model.parameters(), *guide.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert history["loss"][-1] < history["loss"][0]


def test_global_latents_train():
    x = torch.randn(40, users.D, generator=torch.Generator().manual_seed(0)) + 1
    with pyro.get_param_store().scope():
        history = fit(users.outside_model, users.outside_guide, x, epochs=60, lr=0.05)
        assert pyro.param("loc").sum().item() == pytest.approx(1.0, abs=0.2)
    assert history["kl"][-1] is None


def test_modes_are_set_to_train_and_back():
    vae = make().eval()
    modes = []
    vae.likelihood.net.register_forward_hook(
        lambda m, i, o: modes.append(m.training) if torch.is_grad_enabled() else None
    )
    fit(vae.model, vae.guide, X, epochs=1)
    assert modes and all(modes)
    assert not vae.likelihood.net.training
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("dataset", [False, True])
def test_context_stays_with_its_row(dataset):
    decoder, encoder = users.networks()
    model, guide = users.conditional(decoder, encoder)
    x, c = X[:, :1].repeat(1, users.D), X[:, :1] * 3 - 1

    def checked(x, c):
        assert torch.equal(c, x[:, :1] * 3 - 1)
        model(x, c)

    data = Rows(x, c) if dataset else (x, c)
    fit(checked, guide, data, epochs=2, batch_size=7, validation=data)


def test_the_terms_are_those_of_log_terms():
    vae, history = fitted(epochs=1)
    terms = log_terms(vae.model, vae.guide, X)
    kl = (terms.log_guide - terms.log_prior).mean().item()
    assert history["reconstruction"][0] == pytest.approx(terms.log_likelihood.mean().item())
    assert history["kl"][0] == pytest.approx(kl)


def test_an_auto_guide_leaves_nothing_in_the_callers_store():
    from pyro.infer.autoguide import AutoNormal

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.expand(len(x), 4), 1.0).to_event(1), obs=x)

    with pyro.get_param_store().scope():
        fit(model, AutoNormal(model), X, epochs=2)
        assert not pyro.get_param_store().keys()


def test_the_datas_plate_is_the_one_around_the_datum():
    """Another plate that happens to be as long as the batch must not scale the loss."""

    def model(x):
        with pyro.plate("components", 6):
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 1000, subsample_size=len(x)):
            loc = torch.zeros(len(x), 4)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(6))
        with pyro.plate("components", 6):
            pyro.sample("w", dist.Normal(loc, 1.0))

    with pyro.get_param_store().scope():
        losses = [
            fit(model, guide, X[:42], epochs=1, lr=1e-12, batch_size=n)["loss"][0] for n in (6, 7)
        ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def closure_pair(seed=0):
    decoder, encoder = users.networks(seed)
    model, guide = users.conditional(decoder, encoder)
    return model, guide, torch.nn.ModuleList([decoder, encoder])


def test_a_closures_networks_get_their_best_weights_back():
    model, guide, networks = closure_pair()
    x, c = users.batch(40)
    seen = []

    def keep(epoch, record):
        seen.append([p.detach().clone() for p in networks.parameters()])

    history = fit(
        model, guide, (x[:5], c[:5]), validation=(1 - x, c), epochs=50, lr=0.1, patience=3,
        callbacks=[keep],
    )  # fmt: skip
    assert history.best_epoch < len(history)
    best = seen[history.best_epoch - 1]
    assert all(torch.equal(a, b) for a, b in zip(best, networks.parameters(), strict=True))


def test_device_and_dtype_follow_the_modules():
    vae = make().double()
    history = fit(vae.model, vae.guide, X, epochs=1, device="cpu")
    assert vae.sample(1).dtype == torch.float64 and len(history) == 1
