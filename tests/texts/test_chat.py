"""Rows that hold conversations become the text that the model's chat template makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sere.calibrate.packing import pack
from sere.errors import DataError, MissingDependency
from sere.texts import ChatText, load_texts, read_rows
from tests.support.calibration import BOS, EOS, char_tokenizer

TEMPLATE = (
    "<bos>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
OPENAI = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]},
    {"role": "assistant", "content": ["4"], "tool_calls": None},
]


def _tokenizer(template: str | None = TEMPLATE) -> Any:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": OPENAI}, "<bos>[user]2+2?[assistant]4"),
        ({"conversations": SHAREGPT}, "<bos>[user]2+2?[assistant]4"),
        ({"messages": SHAREGPT, "id": 7}, "<bos>[user]2+2?[assistant]4"),
        ({"messages": PARTS}, "<bos>[user]2+\n2?[assistant]4"),
        ({"text": None, "messages": OPENAI}, "<bos>[user]2+2?[assistant]4"),
        ({"text": OPENAI}, "<bos>[user]2+2?[assistant]4"),
        (OPENAI, "<bos>[user]2+2?[assistant]4"),
        ({"messages": [{"role": "tool", "content": None, "tool_calls": [{}]}]}, "<bos>[tool]"),
    ],
)
def test_every_form_goes_through_the_template(row: Any, text: str) -> None:
    """Both forms of messages, under either name, with contents in parts or null, and a bare conversation."""
    (found,) = load_texts([row], tokenizer=_tokenizer())
    assert found == text
    assert isinstance(found, ChatText)


@pytest.mark.parametrize("tokenizer", [None, _tokenizer(None)])
def test_without_a_template_messages_are_joined(tokenizer: Any) -> None:
    """Where there is no template, each message is ``role: content``; that is a text like any other."""
    (found,) = load_texts([{"messages": OPENAI}], tokenizer=tokenizer)
    assert found == "user: 2+2?\n\nassistant: 4"
    assert not isinstance(found, ChatText)


def test_a_text_beside_a_conversation_is_taken() -> None:
    """The named field comes first; another field than the default one has no stand-in."""
    assert list(load_texts([{"text": "plain", "messages": OPENAI}])) == ["plain"]
    with pytest.raises(DataError, match="position 0 has no field 'body'; it has messages; choose one"):
        list(load_texts([{"messages": OPENAI}], field="body"))
    (found,) = load_texts([{"dialog": OPENAI}], field="dialog", tokenizer=_tokenizer())
    assert found == "<bos>[user]2+2?[assistant]4"


def test_special_tokens_of_a_template_are_not_doubled() -> None:
    """A template writes the opening token itself: the tokenizer's own is not added in front of it."""
    # As Llama's tokenizer does, this one opens every text by itself.
    calls: list[tuple[str, bool]] = []
    inner = _tokenizer("<bos>" + "x" * 70_000 + "{{ messages[0]['content'] }}")

    class Opening:
        eos_token_id = EOS

        def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            calls.append((text[:6], add_special_tokens))
            return {"input_ids": [BOS] * add_special_tokens + [5]}

    chat, plain = load_texts([[{"role": "user", "content": "a"}], "plain"], tokenizer=inner)
    tokens = pack([chat, plain], Opening(), max_tokens=100, seq_len=2)
    assert calls == [("<bos>x", False), ("plain", True)]
    assert tokens.ids.tolist() == [5, EOS, BOS, 5, EOS]


def test_a_template_that_refuses_is_named_with_the_row(tmp_path: Path) -> None:
    """What a template raises, and for which row, stands in one error."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": OPENAI}), encoding="utf-8")
    tokenizer = _tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"a\.jsonl line 1: the model's chat template refuses it: roles must"):
        list(load_texts(path, tokenizer=tokenizer))


def test_a_template_that_lacks_a_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is no fault of the row."""
    tokenizer = _tokenizer()

    def lacking(*_: object, **__: object) -> str:
        raise ImportError("apply_chat_template requires jinja2")

    monkeypatch.setattr(tokenizer, "apply_chat_template", lacking)
    with pytest.raises(MissingDependency, match="requires jinja2"):
        list(load_texts([OPENAI], tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": "hello"}, None),
        ({"messages": {"role": "user"}}, r"expected a string .*got dict"),
        ({"messages": ["hello"]}, "message 0: expected an object, got str"),
        ({"messages": [{"content": "x"}]}, "message 0: expected 'role' and 'content'.*it has content"),
        ({"messages": [{"role": 1, "content": "x"}]}, "message 0: expected a string in 'role', got int"),
        ({"messages": [{"role": "user", "content": 5}]}, "a list of text parts as content, got int"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "got one of type 'image'"),
        ({"role": "user", "content": "x"}, "no field 'text'; it has role, content; put the messages"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, r"unpaired surrogate \(U\+D83D\)"),
    ],
)
def test_what_is_no_conversation_is_named(row: Any, text: str | None) -> None:
    """A wrong message is named with its place; a string where messages are expected is a text."""
    if text is None:
        assert list(load_texts([row])) == ["hello"]
        return
    with pytest.raises(DataError, match=f"position 0.*{text}"):
        list(load_texts([row]))


def test_rows_keep_their_other_fields_and_open_an_answer(tmp_path: Path) -> None:
    """For an evaluation a row gives its prompt, up to the opening of the answer, and its other fields."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": OPENAI[:1], "answer": "4"}) + '\n{"prompt": " "}', encoding="utf-8")
    row, empty = read_rows(path, field="prompt")
    assert row.text(_tokenizer(), generation_prompt=True) == "<bos>[user]2+2?[assistant]"
    assert row.text(None, generation_prompt=True) == "user: 2+2?\n\nassistant:"
    assert row.fields["answer"] == "4"
    assert (row.origin, empty.content) == (f"{path} line 1", None)


def test_conversations_in_parquet_are_read(tmp_path: Path) -> None:
    """A column of messages, with nulls in fields that only some of them have, goes through the template."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [OPENAI, [{**OPENAI[0], "name": "a"}]]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "messages": rows}), path)
    template = "{% for m in messages %}{{ m['content'] }}{{ 'name' in m }} {% endfor %}"
    assert list(load_texts(path, tokenizer=_tokenizer(template))) == ["2+2?False 4False ", "2+2?True "]
