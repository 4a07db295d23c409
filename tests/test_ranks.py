"""Several processes that share a batch are one process that has all of it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pyro
import pytest
import torch
from cases.objectives import OBJECTIVES
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from safetensors.torch import load_file, save_file
from test_killed import kept, stop_after, train
from torch import distributed
from torch.overrides import TorchFunctionMode

from pyrovae import build, load, objectives
from pyrovae.importance import find_modules
from pyrovae.objectives.joined import apart
from pyrovae.training import checkpoints, ranks
from pyrovae.training.trainee import Trainee

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "pyrovae", "pyrovae.training"])
N = 9  # shares of 4 and 5 of two processes, of 2, 2, 2 and 3 of four
MADE = {
    "Trace_ELBO": Trace_ELBO, "TraceMeanField_ELBO": TraceMeanField_ELBO,
    **{case.id: case.make for case in OBJECTIVES},
    # the batch's mean KL is just above this, that of one half below
    "FreeBits": lambda: objectives.FreeBits(0.0398, per="site"),
    "Capacity": lambda: objectives.Capacity(1.0, 0.0398),
}  # fmt: skip


class Rows(TorchFunctionMode):
    """Noise of a batch of N rows, of which a process draws its own: row n has noise n."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.calls = rows, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.normal_:  # of rsample
            return args[0].copy_(torch.special.ndtri(self.uniform(args[0])))
        if function is torch.normal and isinstance(args[0], torch.Tensor):  # of sample
            return args[0] + args[1] * torch.special.ndtri(self.uniform(args[0]))
        if function is torch.bernoulli:
            return (self.uniform(args[0]) < args[0]).to(args[0])
        return function(*args, **(kwargs or {}))

    def uniform(self, like):
        self.calls += 1
        shape = (*like.shape[:-2], N, like.shape[-1])
        assert like.shape[-2] == len(range(N)[self.rows])
        generator = torch.Generator().manual_seed(self.calls)
        return torch.rand(shape, generator=generator, dtype=torch.float64)[..., self.rows, :]


def gradients(parted=None):
    """The gradient and loss of every objective, by this process's rows; some apart."""
    x = (torch.rand(N, 6, generator=torch.Generator().manual_seed(1234)) > 0.5).double()
    found = {}
    for name, make in MADE.items():
        pyro.clear_param_store()
        vae = build(data_shape=(6,), latent_dim=2, hidden=(5,), seed=3).double()
        objective = make()
        pair = Trainee(vae.model, vae.guide, objective, find_modules(vae.model, vae.guide))
        with pair.told(20, 0.0), pair.own_store():
            parameters = list(vae.parameters())
            rows = ranks.share(N)
            with Rows(rows), apart() if name == parted else Rows(rows):
                loss = pair.step((x,), 0.0, 1.0, parameters, 0)
        found[f"{name} loss"] = torch.tensor(loss, dtype=torch.float64)
        zero = torch.zeros(1, dtype=torch.float64)
        flat = [zero.expand(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
        found[name] = torch.cat(flat)
    return found


def in_ranks(folder, size, work, *args):
    """Run work in so many processes; return what each left in folder/RANK.safetensors."""
    processes = [
        FORKS.Process(target=one_of, args=(folder, r, size, work, *args)) for r in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [p.exitcode for p in processes] == [0] * size
    return [load_file(folder / f"{r}.safetensors") for r in range(size)]


def one_of(folder, rank, size, work, *args):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    save_file(work(*args), folder / f"{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_the_gradient_is_that_of_the_joined_batch(tmp_path, size):
    """Of every objective, with the same rows of noise, shares that differ in size; all alike."""
    whole = gradients()
    for found in in_ranks(tmp_path, size, gradients):
        for name, expected in whole.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-11, msg=name)


def apart_of(name):
    return {k: v for k, v in gradients(name).items() if k == name}


@pytest.mark.parametrize("name", ["FreeBits", "Capacity", "BetaTC", "InfoVAE", "MMD"])
def test_what_couples_a_batch_must_be_joined(tmp_path, name):
    """Negative control: each process by its own rows alone."""
    whole = gradients()[name]
    found = in_ranks(tmp_path, 2, apart_of, name)[0][name]
    assert (found - whole).norm() > 1e-3 * whole.norm()


# Whole trainings


def trained(run, resume=False, stop=None):
    torch.set_num_threads(1)
    callbacks = [] if stop is None else [stop_after(stop)]
    try:
        vae, history = train(run, resume=resume, callbacks=callbacks)
    except KeyboardInterrupt:
        return {}
    return {
        "weights": torch.cat([p.detach().flatten() for p in vae.parameters()]),
        "loss": torch.tensor([history["loss"], history["validation_loss"]]),
        "noise": torch.rand(1),
    }


def test_processes_agree_and_resume_at_another_number(tmp_path):
    """All have the same weights to the bit, and the same figures; one process can go on."""
    (tmp_path / "w").mkdir()
    first, second = in_ranks(tmp_path / "w", 2, trained, tmp_path / "two")
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["loss"], second["loss"])
    vae, history = train(tmp_path / "one")
    assert first["loss"][0, -1] == pytest.approx(history["loss"][-1], rel=0.1)
    loaded = torch.cat([p.detach().flatten() for p in load(tmp_path / "two").parameters()])
    assert torch.equal(loaded, first["weights"])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", callbacks=[stop_after(4)])
    (tmp_path / "v").mkdir()
    first, second = in_ranks(tmp_path / "v", 2, trained, tmp_path / "a", True)
    assert torch.equal(first["weights"], second["weights"])
    before, after = (kept(tmp_path / name)[1] for name in ("one", "a"))
    assert before[:5] == after[:5] and before[5:] != after[5:]


def noise():
    vae = build(data_shape=(6,), latent_dim=2, hidden=(5,), seed=3)
    pair = Trainee(vae.model, vae.guide, TraceMeanField_ELBO(), [vae])
    drawn = []
    pair._step = lambda *args: drawn.append(torch.rand(3)) or 0.0
    for step in range(2):
        pair.step((torch.zeros(4, 6),), 0.0, 1.0, [torch.zeros(1)], step)
    return {"drawn": torch.stack(drawn)}


def test_noise_differs_by_process_and_step(tmp_path):
    draws = torch.cat([found["drawn"] for found in in_ranks(tmp_path, 2, noise)])
    assert len(draws.unique(dim=0)) == 4


# By torchrun


def torchrun(*words, cwd, **options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*launcher, "-m", "--", "pyrovae", *map(str, words)], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


QUICK = ("--epochs", 2, "--hidden", 16, "--latent-dim", 2)


def test_the_command_line_in_two_processes(tmp_path):
    """Train, then evaluate: the figures are those of one process, each datum counted once."""
    out, told = torchrun("train", *QUICK, "--run", "a", cwd=tmp_path).communicate()
    assert out.count("ELBO") == 1 and "2 epochs in" in told, told
    two = torchrun("evaluate", "a", "--num-particles", 50, "--json", cwd=tmp_path)
    out, told = two.communicate()
    assert two.returncode == 0, told
    from pyrovae.training import evaluation

    one = evaluation.evaluate(tmp_path / "a", num_particles=50)
    found = json.loads(out)
    assert found["n"] == 179
    for key in ("elbo", "kl", "log_evidence", "log_evidence_se"):
        assert found[key] == pytest.approx(one[key], rel=1e-6)


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_to_go_on_with(tmp_path):
    """`pytest -n 0 -m slow -s -k killed_process`: the job ends, the last checkpoint is intact."""
    options = ("--epochs", 300, "--hidden", 16, "--latent-dim", 2, "--run", "a")
    job = torchrun("train", *options, "--checkpoint-seconds", 0, cwd=tmp_path)
    while not (tmp_path / "a" / checkpoints.FOLDER).exists():
        time.sleep(0.05)
    time.sleep(1)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    started = time.monotonic()
    _, told = job.communicate(timeout=120)
    assert job.returncode != 0 and time.monotonic() - started < 90
    print(f"\nthe job ended {time.monotonic() - started:.1f} s after one of it was killed")
    step = int(max((tmp_path / "a" / checkpoints.FOLDER).glob("0*")).name)
    again = torchrun("train", "--run", "a", "--resume", cwd=tmp_path)
    assert again.communicate()[1].count("300 epochs in") == 1 and again.returncode == 0
    assert step > 0 and (tmp_path / "a" / "metrics.json").exists()
