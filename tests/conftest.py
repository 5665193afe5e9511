"""Settings that every test shares: no network, one thread, and nothing left to chance."""

from __future__ import annotations

import contextlib
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

torch.set_num_threads(1)
# The same for processes that tests start. vLLM binds its own to the first core, whoever else is there: two
# workers of pytest-xdist would take turns on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_getaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(cores[int(worker.removeprefix("gw")) % len(cores)])

# The same examples in every run; `make fuzz` explores with fresh ones.
# How fast examples are drawn depends on the machine, and says nothing about a property.
SLOW = [HealthCheck.too_slow]
settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW,
)
settings.register_profile(
    "fuzz",
    database=None,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=SLOW,
    phases=(Phase.generate, Phase.shrink),
)
settings.load_profile("fixed")
# Hypothesis also draws constants that it finds in the source of whatever modules were imported before:
# then examples would depend on which tests ran earlier in the same process.
with contextlib.suppress(ImportError):  # older releases, which a machine with a GPU may have, do not
    from hypothesis.internal.conjecture import providers
    from hypothesis.internal.constants_ast import Constants

    pytest.MonkeyPatch().setattr(providers, "_get_local_constants", Constants, raising=False)


# The order of tests is shuffled, and the same every time unless --randomly-seed says otherwise.
ORDER = 20260207


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest-randomly, where it is installed, its seed, and that generators are seeded below."""
    if config.getoption("randomly_seed", None) == "default":
        config.option.randomly_seed = ORDER
    config.option.randomly_reset_seed = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed before any fixture, those of a module too: what ran before in the same process does not matter."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker the same files in every run, however fast the others are."""
    from tests.support.workers import FixedParts

    return FixedParts(config, log)
