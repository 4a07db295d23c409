"""Every test starts from the same global generator."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the networks are small: more threads only wait for each other


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir():
    """The folder with MNIST, from PYROVAE_DATA."""
    folder = os.environ.get("PYROVAE_DATA")
    if not folder or not (Path(folder) / "MNIST" / "raw").is_dir():
        pytest.skip("PYROVAE_DATA names no folder with MNIST/raw")
    return Path(folder)
