"""What calibration is asked to do is checked before anything is read or computed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from sere.calibrate import CalibrationConfig, calibrate
from sere.calibrate.config import CalibrationOptions
from sere.errors import ConfigError, InputError
from tests.support.calibration import char_tokenizer
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog."] * 8


def test_the_signature_has_every_field() -> None:
    """What type checkers see of `sere.calibrate` and what it takes are the same names."""
    names = {field.name for field in fields(CalibrationConfig)}
    assert set(CalibrationOptions.__annotations__) | {"metric"} == names


def test_the_docstring_describes_every_field() -> None:
    """The one docstring names each keyword argument."""
    assert calibrate.__doc__ is not None
    described = calibrate.__doc__
    assert [name for name in CalibrationOptions.__annotations__ if f"- ``{name}``: " not in described] == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metric": "frobenus"}, "unknown metric 'frobenus'; did you mean 'frobenius'"),
        (
            {"metric": "cka", "metric_parameters": {"kernal": "rbf"}},
            "unknown parameter 'kernal'; did you mean 'kernel'",
        ),
        ({"seq_len": 0}, "seq_len: expected an integer of at least 1, got 0"),
        ({"max_tokens": 64}, "max_tokens: expected at least one sequence of seq_len=128, got 64"),
        ({"metric": ["cosine", "cosine"]}, "metric: expected each name once, got cosine, cosine"),
        ({"metric": []}, "metric: expected at least one name, got none"),
        (
            {"metric": ["cosine"], "metric_parameters": {"cka": {}}},
            r"metric_parameters: expected names among the metrics \(cosine\), got cka",
        ),
        (
            {"metric": ["cka"], "metric_parameters": {"kernel": "rbf"}},
            "expected a mapping from a metric's name",
        ),
        ({"low_memory": True}, "low_memory: only applies to a checkpoint, got a model that is already"),
        ({"work_dir": "w"}, "work_dir: only applies to a checkpoint"),
        ({"dtype": torch.float32}, "dtype: only applies to a checkpoint"),
        ({"device": "cuda"}, "device: only applies to a checkpoint"),
        ({"engine": "vllm"}, "engine: only applies to a checkpoint"),
        ({"engine": "vlm"}, "engine: expected transformers or vllm, got 'vlm'; did you mean 'vllm'"),
        ({"engine_options": {"dtype": "half"}}, "engine_options: only apply to engine='vllm'"),
        (
            {"engine": "vllm", "device": "cuda"},
            "device: only applies to Transformers, got engine='vllm', which places the model itself",
        ),
        (
            {"engine": "vllm", "metric": ["weights"]},
            "metric: weights compares the checkpoint's weights, which needs no engine",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    """A wrong name or value is refused with what was expected."""
    with pytest.raises(ConfigError, match=text):
        calibrate(tiny_model("qwen3_moe"), char_tokenizer(), TEXTS, **options)


def test_an_unknown_argument_is_named() -> None:
    """As Python does it, with the nearest valid name."""
    with pytest.raises(TypeError, match="calibrate: unexpected argument 'max_token'; did you mean 'max_tok"):
        calibrate("bundled", None, TEXTS, max_token=64)  # type: ignore[call-overload]


@pytest.mark.parametrize("wrong", [None, "folder", torch.nn.Linear(1, 1)], ids=["None", "str", "module"])
def test_something_other_than_a_tokenizer_is_named(wrong: object) -> None:
    """The text says what it is."""
    kind = "None" if wrong is None else type(wrong).__name__
    with pytest.raises(ConfigError, match=f"tokenizer: expected the model's tokenizer, got {kind}; load it"):
        calibrate(tiny_model("qwen3_moe"), wrong, TEXTS)


def test_a_tokenizer_in_the_models_position_is_named() -> None:
    """Swapped arguments are told apart."""
    tokenizer = char_tokenizer()
    text = f"model: expected .*, got {type(tokenizer).__name__}; the model goes first"
    with pytest.raises(InputError, match=text):
        calibrate(tokenizer, tiny_model("qwen3_moe"), TEXTS)
