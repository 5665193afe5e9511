"""Complete texts (``loglikelihood_rolling``) in decode steps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: make test-vllm")

from sere.eval.harness.model import SereLM

pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("default")]


def test_windows_of_a_text_are_scored_in_decode_steps(checkpoint: Path) -> None:
    """Also a text longer than the model's longest, which lm-eval cuts into windows."""
    texts = [SimpleNamespace(args=(text,)) for text in ("sort 3 1 2", "the mill stood by the river " * 3)]
    found = {}
    for setting, phases in (("off", "prefill"), ("off", "decode"), ("topk:select_top_k=1", "decode")):
        model = SereLM(
            str(checkpoint), sere=setting, phases=phases, batch_size=2, max_length=32, device="cpu"
        )
        found[setting, phases] = model.loglikelihood_rolling(texts, disable_tqdm=True)
    assert found["off", "decode"] == pytest.approx(found["off", "prefill"], abs=1e-3)
    assert found["topk:select_top_k=1", "decode"] != pytest.approx(found["off", "prefill"], abs=1e-2)
