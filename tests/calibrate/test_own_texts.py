"""Without texts, the model writes its own: its openings, its distribution, and what stays as it was."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import sere
from sere.calibrate import CalibrationConfig
from sere.calibrate.own_texts import write_prompts, write_tokens
from sere.errors import ConfigError, DataError, UnsupportedModel
from sere.table import OWN_TEXTS
from tests.support.checkpoints import save_checkpoint, tiny_tokenizer
from tests.support.tiny import tiny_model

OPTIONS: dict[str, Any] = {"max_tokens": 600, "seq_len": 40, "progress": False}
END = 1
TEMPLATE = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}|{% endif %}"


@pytest.fixture(scope="module")
def model() -> Any:
    size = len(tiny_tokenizer())
    return tiny_model("qwen3_moe", vocab_size=size, pad_token_id=0, bos_token_id=None, eos_token_id=END)


def texts_of(model: Any, tokenizer: Any = None, **options: Any) -> list[list[int]]:
    """Return the texts that the model writes, as token ids."""
    tokens = write_tokens(model, tokenizer or tiny_tokenizer(), CalibrationConfig(**OPTIONS | options))
    bounds = [*tokens.documents.tolist(), tokens.num_tokens]
    return [tokens.ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def test_no_texts_are_needed(model: Any) -> None:
    """As many tokens as were asked for; the table says who wrote them; the seed repeats them."""
    made = [sere.calibrate(model, tiny_tokenizer(), seed=seed, **OPTIONS) for seed in (0, 0, 1)]
    assert made[0].calibration_tokens == 600
    assert made[0].provenance["calibration"]["texts"] == OWN_TEXTS
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].data_digest != made[2].data_digest


def test_texts_begin_with_openings_and_end_where_the_model_ends_them(model: Any) -> None:
    """A quarter with the token that ends texts, where there is no start token; at most ``seq_len`` long."""
    found = texts_of(model)
    assert [len(text) <= 40 for text in found] == [True] * len(found)
    assert [END in text[1:-1] for text in found] == [False] * len(found)
    assert [text[0] == END for text in found[:8]] == [True, False, False, False] * 2
    written = tiny_tokenizer().decode(found[1][:8])
    assert any(opening.startswith(written) for opening in sere.texts.OPENINGS)


def test_it_is_known_where_its_own_words_begin(model: Any) -> None:
    """After the opening: one token, or the beginning of a text, of half a text at most."""
    tokens = write_tokens(model, tiny_tokenizer(), CalibrationConfig(**OPTIONS))
    opening = (tokens.written - tokens.documents).tolist()
    assert opening[:8:4] == [1, 1]
    decoded = [
        tiny_tokenizer().decode(tokens.ids[a:b])
        for a, b in zip(tokens.documents, tokens.written, strict=True)
    ]
    assert all(any(known.startswith(one) for known in sere.texts.OPENINGS) for one in decoded[1:4])
    assert max(opening) <= 20


def test_a_chat_template_makes_two_thirds_of_the_others_messages(model: Any) -> None:
    """With the beginning of an answer, as a server sees them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    opens, answers = tokenizer.convert_tokens_to_ids(["<", "|"])
    chats = [text[0] == opens and answers in text for text in texts_of(model, tokenizer, seq_len=100)]
    assert chats[:4] == [False, False, True, True]


def test_a_start_token_comes_first(model: Any) -> None:
    """The tokenizer's own, before a text without words."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "7"
    assert texts_of(model, tokenizer)[0][0] == tokenizer.convert_tokens_to_ids("7")


def test_openings_that_the_tokenizer_does_not_know_are_left_out(model: Any) -> None:
    """A tokenizer of single characters knows no Chinese; no text has its unknown token in its opening."""
    unknown = tiny_tokenizer().unk_token_id
    assert [text for text in texts_of(model, max_tokens=2000) if unknown in text[:4]] == []


def test_it_is_the_models_own_distribution(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature 1 and nothing else, whatever the checkpoint recommends; all is as it was afterward."""
    recommended = GenerationConfig(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=3.0)
    monkeypatch.setattr(model, "generation_config", recommended)
    seen: list[GenerationConfig] = []
    generate = model.generate

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(model.generation_config)
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", watched)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    texts_of(model.train())
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    model.eval()
    assert model.generation_config is recommended
    (used,) = {(one.temperature, one.top_k, one.top_p, one.repetition_penalty) for one in seen}
    assert used[:3] == (1.0, 0, 1.0)
    assert used[3] in (None, 1.0)


def test_prompts_are_beginnings_that_the_model_wrote(model: Any) -> None:
    """All different, without template or special tokens, as many as asked for; the seed repeats them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    found = write_prompts(model, tokenizer, 150, seed=1)
    assert len(set(found)) == len(found) == 150
    assert found == write_prompts(model, tokenizer, 150, seed=1) != write_prompts(model, tokenizer, 150)
    lengths = [len(tokenizer(prompt).input_ids) for prompt in found]
    assert 24 < max(lengths) <= 48
    chats = tuple(f"<{opening[:6]}" for opening in sere.texts.OPENINGS)
    assert not [prompt for prompt in found if prompt.startswith(chats) or tokenizer.eos_token in prompt]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"generate": None}, UnsupportedModel, "cannot continue text by itself; give texts"),
        ({"generate": lambda input_ids, **_: input_ids}, DataError, "it ends its texts at once; give texts"),
    ],
    ids=["no generate", "ends at once"],
)
def test_a_model_that_cannot_write_asks_for_texts(
    change: dict[str, Any], error: type[Exception], text: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, before anything is measured."""
    for name, value in change.items():
        monkeypatch.setattr(model, name, value)
    with pytest.raises(error, match=text):
        texts_of(model, seq_len=600)


def test_a_tokenizer_without_openings_is_named(model: Any) -> None:
    """It has no start token and knows none of the texts."""

    class Blank:
        unk_token_id, eos_token_id, bos_token_id, chat_template = 2, None, None, None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [2] * len(text)}

    with pytest.raises(
        DataError, match=r"^texts: Blank has no start token and knows no opening of at most 20 "
    ):
        texts_of(model, Blank())


def test_layer_by_layer_texts_are_needed(tmp_path: Path) -> None:
    """One decoder layer at a time cannot write; the text says why it is read so, and what to give."""
    with pytest.raises(
        DataError, match=r"^texts: expected texts, because low_memory is set: read layer .*--engine vllm"
    ):
        sere.calibrate(save_checkpoint(tmp_path), low_memory=True, **OPTIONS)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"field": "body"}, "^field: without texts, the model writes its own; leave field out$"),
        ({"split": "test"}, "^split: without texts"),
        (
            {"metric": "weights", "texts": ["a"]},
            "^texts: the metric 'weights' compares weights and reads no ",
        ),
        ({"metric": "weights", "max_tokens": 4096}, "^max_tokens: the metric 'weights' compares weights"),
        ({"trust_remote_code": True}, "^trust_remote_code: only applies to a checkpoint"),
    ],
    ids=["field", "split", "texts", "max_tokens", "code"],
)
def test_what_would_be_ignored_is_refused(model: Any, given: dict[str, Any], text: str) -> None:
    """An option that nothing reads is a misunderstanding."""
    with pytest.raises(ConfigError, match=text):
        sere.calibrate(model, tiny_tokenizer(), progress=False, **given)
