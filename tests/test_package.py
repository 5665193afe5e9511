"""What importing and installing the package gives."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

import sere
import sere.integrations.vllm as sere_vllm

# What a serving environment may not have; torch and its own dependencies are there anyway.
OPTIONAL = (
    "transformers",
    "vllm",
    "numba",
    "cuda",
    "matplotlib",
    "plotly",
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


COMMANDS = "from sere.cli import main\nassert main({!r}.split()) == 0"


@pytest.mark.parametrize(
    "program",
    [
        "import sere; assert set(sere.__all__) <= set(dir(sere)); sere.SereError; sere.RerouteConfig",
        "import sere.integrations.vllm as v; assert set(v.__all__) <= set(dir(v))",
        "from sere.integrations.vllm.plugin import register; register()",
        *map(
            COMMANDS.format, ("--version", "--help", "calibrate --help", "table show --help", "eval --help")
        ),
        *map(COMMANDS.format, ("bench run --help", "bench serve --help", "generate --help", "demo --help")),
        COMMANDS.format("top --help"),
        *map(COMMANDS.format, ("doctor --help", "list policies --help")),
    ],
)
def test_start_is_light(program: str) -> None:
    """Importing, the plug-in of an engine that does not ask for sere, and every help load no PyTorch."""
    heavy = (
        "import sys\nprint(sorted({'torch', 'numpy', 'transformers', 'vllm', 'numba'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", f"{program}\n{heavy}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_names_load_without_optional_packages() -> None:
    """All public names together load neither Transformers nor vLLM nor numba, and do not start CUDA."""
    program = """
import sys, torch
from sere import *
assert not {"transformers", "vllm", "numba", "matplotlib"} & set(sys.modules)
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("first", ["sere.reroute.batch", "sere.calibrate.api", "sere.reroute", "sere.table"])
def test_public_names_are_functions_whatever_is_imported_first(first: str) -> None:
    """``sere.reroute`` and ``sere.calibrate`` are functions, before and after the import of the packages."""
    program = f"""
import sere
import {first}
from sere import calibrate, reroute
import sere.reroute, sere.calibrate, sys
assert sere.reroute is reroute is sys.modules["sere.reroute"].reroute
assert sere.calibrate is calibrate is sys.modules["sere.calibrate"].calibrate
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", sorted({*sere.__all__} - {"__version__"}))
def test_public_names_can_be_pickled(name: str) -> None:
    """A name that was loaded late is pickled as what it is."""
    assert pickle.loads(pickle.dumps(getattr(sere, name))) is getattr(sere, name)


@pytest.mark.parametrize("module", [sere, sere_vllm], ids=["sere", "vllm"])
def test_other_names_are_missing(module: ModuleType) -> None:
    """A name that does not exist is the error that Python gives."""
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_type_checkers_see_the_names_that_are_lazy() -> None:
    """What is imported for type checkers is what is loaded, name by name."""
    tree = ast.parse(Path(sere.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == sere._HOMES


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("sere", ["py.typed"]),
        ("sere.reroute.backends.cuda", ["reroute.cu", "call.cuh", "kernel.cuh", "numbers.cuh", "phases.cuh"]),
        ("sere.report", ["page.css", "page.js"]),
        ("sere.integrations.vllm.live.page", ["page.html", "page.css", "main.js", "charts.js", "steer.js"]),
        ("sere.bundled", ["abacus/config.json", "abacus/model.safetensors", "abacus/tokenizer.json"]),
    ],
)
def test_what_is_no_code_is_installed_too(package: str, names: list[str]) -> None:
    """Type marker, the kernel's sources, the live page and the bundled model are in the package."""
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
