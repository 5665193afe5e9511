"""What importing and installing the package gives."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from importlib.metadata import entry_points

import pytest

import sere

# What a serving environment may not have; torch and its own dependencies are there anyway.
OPTIONAL = (
    "transformers",
    "vllm",
    "numba",
    "cuda",
    "matplotlib",
    "pyarrow",
    "psutil",
    "tqdm",
    "tokenizers",
    "datasets",
)


def test_public_names_exist() -> None:
    """Every public name is there, and the operations are functions, not the packages they live in."""
    assert all(hasattr(sere, name) for name in sere.__all__)
    assert all(callable(operation) for operation in (sere.apply, sere.calibrate, sere.reroute))


def test_import_works_without_any_optional_package() -> None:
    """With every optional package missing, the import works and re-routing falls back to torch."""
    program = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import torch, sere
similarity = torch.rand(4, 4).fill_diagonal_(1.0)
routing = sere.reroute(torch.tensor([[0, 1], [2, 3]]), torch.rand(2, 2), similarity, select_top_k=1)
assert routing.ids.shape == (2, 2)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "numba is not installed" in run.stderr


def test_import_is_light() -> None:
    """Importing loads neither Transformers nor vLLM nor numba, and does not start CUDA."""
    program = """
import sys, sere, torch
assert not {"transformers", "vllm", "numba", "matplotlib"} & set(sys.modules)
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("sere", ["py.typed"]),
        ("sere.reroute.backends.cuda", ["reroute.cu", "call.cuh", "kernel.cuh", "numbers.cuh", "phases.cuh"]),
        ("sere.bundled", ["abacus/config.json", "abacus/model.safetensors", "abacus/tokenizer.json"]),
    ],
)
def test_what_is_no_code_is_installed_too(package: str, names: list[str]) -> None:
    """Type marker, the kernel's sources and the bundled model are in the package."""
    assert all(resources.files(package).joinpath(name).is_file() for name in names)


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ("console_scripts", "sere.cli:main"),
        ("vllm.general_plugins", "sere.integrations.vllm.plugin:register"),
        ("vllm.endpoint_plugins", "sere.integrations.vllm.client.http_routes:Endpoint"),
    ],
)
def test_others_find_the_package(group: str, value: str) -> None:
    """The installation names the command and what vLLM is to load."""
    assert [found.value for found in entry_points(group=group, name="sere")] == [value]


@pytest.mark.parametrize("name", ["apply", "calibrate", "reroute"])
def test_public_operations_are_documented(name: str) -> None:
    """Docstrings give arguments, result, errors and source."""
    documentation = getattr(sere, name).__doc__ or ""
    assert all(part in documentation for part in ("Args:", "Returns:", "Raises:", "Source:"))
