"""Prompts and questions of a user's file, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sere.errors import DataError
from sere.eval.questions import encode_prompts, takes_template
from sere.eval.user_questions import FileQuestion, read_prompts, read_questions
from sere.texts import Row
from tests.support.checkpoints import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_lines_of_a_text_file_are_prompts(tmp_path: Path) -> None:
    """One prompt per line, whatever the line ends and the byte order mark; blank lines are none."""
    path = tmp_path / "prompts.TXT"
    path.write_bytes("\ufeffone\r\n\r\n two \n".encode())
    prompts, source = read_prompts(path)
    assert [row.content for row in prompts] == ["one", " two "]
    assert source == {"file": "prompts.TXT", "count": 2, "skipped": 0}


def test_rows_are_prompts_and_empty_ones_are_counted(tmp_path: Path) -> None:
    """Texts, conversations in both forms; null and blank rows are skipped and counted, duplicates stay."""
    user = {"role": "user", "content": "b"}
    path = save(
        tmp_path,
        {"prompt": "a"},
        {"messages": [user]},
        {"conversations": [{"from": "human", "value": "b"}, {"from": "gpt", "value": "an answer"}]},
        {"prompt": [user]},
        None,
        {"prompt": None},
        {"prompt": " "},
        {"prompt": "a"},
    )
    prompts, source = read_prompts(path)
    assert [row.content for row in prompts] == ["a", (user,), (user,), (user,), "a"]
    assert source == {"file": "rows.jsonl", "count": 5, "skipped": 3}


def test_prompts_take_the_chat_template_where_there_is_one(tmp_path: Path) -> None:
    """A conversation is written by the template; a text too, as a user's message, if that is wanted."""
    prompts, _ = read_prompts(
        save(tmp_path, {"prompt": "hi"}, {"messages": [{"role": "user", "content": "b"}]})
    )
    tokenizer = tiny_tokenizer()
    assert not takes_template(tokenizer, prompts)
    assert [tokenizer.decode(ids) for ids in encode_prompts(tokenizer, prompts, chat=True)] == [
        "hi",
        "user: b\n\nassistant:",
    ]
    tokenizer.chat_template = TEMPLATE
    assert takes_template(tokenizer, prompts)
    assert not takes_template(tokenizer, prompts[1:])
    asked, plain = encode_prompts(tokenizer, prompts, chat=True), encode_prompts(tokenizer, prompts)
    assert [tokenizer.decode(ids) for ids in asked] == ["<user>hi\n<assistant>", "<user>b\n<assistant>"]
    assert [tokenizer.decode(ids) for ids in plain] == ["hi", "<user>b\n<assistant>"]


def test_prompts_that_cannot_be_encoded_are_named() -> None:
    """A template's own refusal and a prompt without tokens name the row."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('users only') }}"
    with pytest.raises(
        DataError, match=r"prompts: rows line 3: the model's chat template refuses it: .*users only"
    ):
        encode_prompts(tokenizer, [Row("rows line 3", ({"role": "system", "content": "x"},))])
    with pytest.raises(DataError, match="prompts: rows line 4 has no tokens"):
        encode_prompts(tokenizer, [Row("rows line 4", "")])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.txt", b"\n \n", r"prompts: .*p.txt has no prompts \(0 rows are null or blank\)"),
        ("p.jsonl", b"null\n", r"has no prompts \(1 rows are null or blank\)"),
        ("p.txt", b"PK\x03\x04\x00\x00", "p.txt is a binary file"),
        ("p.txt", b"\xff\xfe\x80", "p.txt is not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', "p.jsonl line 2: expected a string"),
        ("p.jsonl", b'{"prompt": "a"}\n{prompt}\n', "p.jsonl line 2 is not JSON"),
        ("p.jsonl", b'{"text": "a"}\n', "p.jsonl line 1 has no field 'prompt'; it has text"),
        (
            "p.jsonl",
            b'{"messages": [{"role": "assistant", "content": "a"}]}\n',
            "line 1: expected a message that the model should answer, got only answers",
        ),
    ],
)
def test_files_without_prompts_are_refused(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    """What is wrong is named, with the file and the line."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_prompts(path)
    assert str(caught.value).startswith("prompts: ")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    """Both are named, and what to give instead."""
    with pytest.raises(DataError, match=r"questions: no file .*nowhere.jsonl; give a .txt"):
        read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"prompts: .* is a folder"):
        read_prompts(tmp_path)


def test_questions_have_answers_and_patterns(tmp_path: Path) -> None:
    """Answers are texts or numbers; white space around them is none of theirs."""
    path = save(
        tmp_path,
        {"prompt": "a", "answer": " 4 "},
        {"prompt": "b", "answer": 4, "pattern": r"= (\d)"},
        None,
        {"prompt": "a", "answer": " 4 "},
    )
    questions, source = read_questions(path)
    assert [(question.answer, question.pattern is None) for question in questions] == [
        ("4", True),
        ("4", False),
        ("4", True),
    ]
    assert source["skipped"] == 1
    assert questions[0].key == questions[2].key != questions[1].key


@pytest.mark.parametrize(
    ("pattern", "output", "right"),
    [
        (None, " 42\n", True),
        (None, "It is 42", False),
        (r"\d+", "6 x 7 = 42", True),
        (r"\d+", "42 = 6 x 7", False),
        (r"= (\d+)", "= 41, no: = 42.", True),
        (r"(\d+)?x", "42 x", False),
        (r"= (\d+)", "nothing", False),
        (r"(?i)answer:\s*(\w+)", "ANSWER: 42", True),
    ],
)
def test_the_last_match_is_the_answer(pattern: str | None, output: str, right: bool) -> None:
    """Of the output, or of the pattern's last match its first group, all must be the answer."""
    import re

    question = FileQuestion(Row("x", "q"), "42", None if pattern is None else re.compile(pattern))
    assert question.is_right(output) is right


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, "line 2: expected the right answer, .* in field 'answer'; got a row of prompt"),
        ({"prompt": "a", "answer": None}, "'answer'; got null"),
        ({"prompt": "a", "answer": True}, "'answer'; got true"),
        ({"prompt": "a", "answer": ["x"]}, r"'answer'; got \[\"x\"\]"),
        ({"prompt": "a", "answer": " "}, "'answer'; got"),
        ({"prompt": "a", "answer": "x", "pattern": "("}, r"line 2: pattern '\(' is not a regular expression"),
        (
            {"prompt": "a", "answer": "x", "pattern": 3},
            "expected a regular expression in field 'pattern', got 3",
        ),
    ],
)
def test_rows_that_are_no_questions_are_refused(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    """A missing or odd answer and a pattern that is none name their line."""
    path = save(tmp_path, {"prompt": "a", "answer": "x"}, row)
    with pytest.raises(DataError, match=words):
        read_questions(path)


def test_text_files_hold_no_answers(tmp_path: Path) -> None:
    """Questions without answers are refused at their first line."""
    path = tmp_path / "q.txt"
    path.write_text("why?\n")
    with pytest.raises(
        DataError, match=r"questions: .*q.txt line 1: expected the right answer.* got a row of text"
    ):
        read_questions(path)
