"""Settings that every test shares: no network, one thread, fixed hypothesis profile."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("sere", deadline=None, print_blob=True)
settings.load_profile("sere")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
