"""Every test starts from the same global generator."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the networks are small: more threads only wait for each other


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _folder_with(inside):
    folder = os.environ.get("PYROVAE_DATA")
    if not folder or not (Path(folder) / inside).exists():
        pytest.skip(f"PYROVAE_DATA names no folder with {inside}")
    return Path(folder)


@pytest.fixture(scope="session")
def data_dir():
    """The folder with MNIST, from PYROVAE_DATA."""
    return _folder_with("MNIST/raw")


@pytest.fixture(scope="session")
def frey_dir():
    """The folder with the Frey faces, from PYROVAE_DATA."""
    return _folder_with("FreyFaces/freyfaces.npy")
