"""Weights that an engine loads, and new ones that it is given while it runs."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sere.integrations.vllm.worker.weights import watch_reloading, without_table

LOADERS = "vllm.model_executor.model_loader"


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The module of vLLM that says which files have weights; this one takes all."""
    module = ModuleType(LOADERS)
    found = SimpleNamespace(filter_duplicate_safetensors_files=lambda files, *_: files)
    module.default_loader = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, LOADERS, module)
    return found


def test_a_thread_that_loads_another_model(loader: SimpleNamespace, tmp_path: Path) -> None:
    """While one engine loads, its table is no weights for it; what another thread loads is left alone."""
    table = tmp_path / "mine.safetensors"
    table.touch()
    files, seen = [str(tmp_path / "model.safetensors"), str(table)], []
    choose = loader.filter_duplicate_safetensors_files
    with without_table(table):
        assert loader.filter_duplicate_safetensors_files(files) == files[:1]
        other = threading.Thread(target=lambda: seen.append(loader.filter_duplicate_safetensors_files(files)))
        other.start()
        other.join()
    assert seen == [files]
    assert loader.filter_duplicate_safetensors_files is choose


def watched(path: Path, *, speaks: bool = True) -> Any:
    """A worker of the model ``here`` whose methods return what they are given."""
    worker = SimpleNamespace(
        vllm_config=SimpleNamespace(model_config=SimpleNamespace(model="here")),
        reload_weights=lambda *given, **named: (given, named),
        finish_weight_update=lambda *given: given,
    )
    watch_reloading(worker, path / "similarity.sere", speaks=speaks)
    return worker


@pytest.mark.parametrize("speaks", [True, False])
def test_weights_of_a_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture, speaks: bool) -> None:
    """When a trainer has sent weights the log says it, once, and on one rank only."""
    worker = watched(tmp_path, speaks=speaks)
    for _ in range(2):
        assert worker.finish_weight_update(5) == (5,)
    assert len(caplog.messages) == speaks
    assert all("a trainer has sent other weights, and re-routing goes on" in line for line in caplog.messages)


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("given", "named", "text"),
    [
        ((), {}, None),
        ((), {"weights_path": "here"}, None),
        ((), {"weights_path": "./here"}, None),
        ((), {"weights_path": "there"}, "the weights are those of there now, not of here"),
        ((None, "there"), {}, "the weights are those of there now, not of here"),
        ((), {"weights_iterator": iter(())}, "the engine was given other weights"),
        ((iter(()),), {}, "the engine was given other weights"),
    ],
    ids=["its own", "its path", "the same path", "another path", "by position", "tensors", "tensors first"],
)
def test_reloaded_weights(
    given: tuple[Any, ...], named: dict[str, Any], text: str | None,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Reloading the engine's own weights says nothing; others are named in the log."""
    assert watched(tmp_path).reload_weights(*given, **named) == (given, named)
    assert [text in line for line in caplog.messages] == ([] if text is None else [True])
