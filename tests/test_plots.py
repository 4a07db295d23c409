import pytest
import torch

from pyrovae import build, fit, plots


def pair(shape, latent_dim, **options):
    return build(data_shape=shape, latent_dim=latent_dim, hidden=(8,), **options)


def pixels(figure):
    figure.canvas.draw()
    return torch.tensor(memoryview(figure.canvas.buffer_rgba()).tolist())


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (3, 6, 6), (7,), (2, 3, 4)])
def test_samples_and_reconstructions_of_any_shape(shape):
    vae = pair(shape, 3)
    x = vae.sample(5)
    figure = plots.reconstructions(vae, x, columns=4)
    assert len(figure.axes) == 8
    assert len(plots.samples(vae, n=7, columns=4).axes) == 8
    assert pixels(figure).unique().numel() > 2


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_latent(latent_dim):
    vae = pair((6, 6), latent_dim)
    x = vae.sample(40)
    labels = torch.arange(40) % 4
    assert len(plots.latent(vae, x, labels).axes[0].get_legend().get_texts()) == 4
    assert plots.latent(vae, x).axes[0].get_legend() is None


def test_manifold_shows_what_the_decoder_gives():
    vae = pair((3, 2), 2)
    figure = plots.manifold(vae, n=4)
    image = torch.as_tensor(figure.axes[0].images[0].get_array())
    quantiles = torch.special.ndtri((torch.arange(4) + 0.5) / 4)
    top_left = vae.decode(torch.stack([quantiles[0], quantiles[3]])).mean
    torch.testing.assert_close(image[1:4, 1:3].float(), top_left.detach())
    bottom_right = vae.decode(torch.stack([quantiles[3], quantiles[0]])).mean
    torch.testing.assert_close(image[-4:-1, -3:-1].float(), bottom_right.detach())
    with pytest.raises(ValueError, match="two latent dimensions and grey images"):
        plots.manifold(pair((3, 2), 3))


@pytest.mark.parametrize("validation", [True, False])
def test_history(validation, tmp_path):
    vae = pair((4,), 2)
    x = torch.ones(20, 4)
    history = fit(vae.model, vae.guide, x, epochs=30, validation=x if validation else None)
    figure = plots.history(history)
    assert len(figure.axes[0].lines) == (3 if validation else 1)
    path = plots.save(figure, tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG") and [path] == list(tmp_path.iterdir())


def test_duality_draws_the_three():
    from pyrovae import evidence

    vae = pair((4,), 1, net_options={"activation": "tanh"})
    x = torch.ones(3, 4)
    recorder = evidence.IdentityRecorder(vae.model, vae.guide, x, every=3)
    fit(vae.model, vae.guide, x.repeat(10, 1), epochs=30, lr=0.01, callbacks=[recorder])
    left, right = plots.duality(recorder).axes
    log_evidence, elbo = (line.get_ydata() for line in left.lines)
    kl = right.lines[0].get_ydata()
    assert list(left.lines[0].get_xdata()) == recorder.epochs and len(kl) == 11
    torch.testing.assert_close(
        torch.tensor(log_evidence - elbo), torch.tensor(kl), rtol=0, atol=1e-6
    )
