"""The commands of the page of transcripts, for each of its models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

COLUMNS = 110
# Where each model's commands find it; the second is made for the page.
MODELS = {"bundled": "The bundled model", "olmoe": "A tiny random OLMoE"}
# Of the server and of its metrics: those of the quickstart.
PORTS = (8000, 9400)
# What the server of the bundled model is asked: in the notation that the model was trained on, and answered
# rightly while no expert is replaced.
QUESTIONS = (
    "add 4821+957\n", "add 7305+8641\n", "sub 7421-3586\n", "sub 9034-2718\n",
    "mul 2734*6\n", "mod 5846%7\n", "sort 29 23 26 46 59 63 10\n", "sort 44 00 99 55 45 77 53\n",
)  # fmt: skip
# What stands in a command for a folder of the machine that runs it.
FOLDER, CHECKOUT = "FOLDER", "CHECKOUT"


class Step(NamedTuple):
    """One command.

    Attributes:
        title: What it does.
        line: As a user types it into a shell.
        serves: Whether it is a server, which runs while the commands after it run, and is then ended.
    """

    title: str
    line: str
    serves: bool = False


def steps(model: str) -> list[Step]:
    """Return the commands that are run on a model, in their order.

    Args:
        model: One of ``MODELS``.
    """
    few = "--setting sere --batch-size 8"
    own = model == "bundled"
    texts = "--tasks addition --per-task 16 --no-text" if own else "--prompts prompts.txt --max-new-tokens 16"
    tasks = "--per-task 16" if own else "--include-path tasks"
    return [
        Step("What to expect, from a config alone", f"sere doctor {model}-config"),
        Step("Calibrate without texts", f"sere calibrate {model} --max-tokens 2048"),
        Step(
            "Calibrate with texts",
            f"sere calibrate {model} --texts texts.jsonl --max-tokens 2048 --out {model}-texts.sere",
        ),
        Step(
            "Calibrate in vLLM, with an option of its engine",
            f"sere calibrate {model} --engine vllm --engine-option dtype=float32 --max-tokens 2048 "
            f"--out {model}-vllm.sere",
        ),
        Step(
            "Tune",
            f"sere tune {model} --max-kl 0.05 --max-prompts 16 --batch-size 8 --max-new-tokens 8 --uniform",
        ),
        Step("Show the table", f"sere table show {model}"),
        Step("Evaluate", f"sere eval {model} {few} {texts}"),
        Step("Evaluate with lm-eval", f"sere lm-eval {model} {few} --tasks sere_addition {tasks}"),
        Step(
            "Evaluate with lm-eval in vLLM",
            f"sere lm-eval {model} {few} --tasks sere_addition {tasks} --engine vllm "
            "--engine-option max_model_len=512",
        ),
        Step(
            "Evaluate with lm-eval, scored in decode steps",
            f"sere lm-eval {model} {few} --tasks sere_addition_choice --phases decode --limit 8 {tasks}",
        ),
        Step("Push the table", f"sere table push {model} owner/{model}-sere"),
        Step("Pull the table", f"sere table pull owner/{model}-sere --out {model}-pulled.sere"),
        *_served(own),
    ]


def _served(own: bool) -> list[Step]:
    """Return a server and what is asked of it, for the bundled model (``own``) or the other one."""
    model = f"{CHECKOUT}/src/sere/bundled/abacus" if own else f"{FOLDER}/olmoe"
    table = f'"table": "{FOLDER}/bundled.sere", ' if own else ""
    begins = QUESTIONS if own else [f"The year 190{n}:" for n in range(1, 9)]
    prompts = ", ".join(map(json.dumps, begins[:4])), ", ".join(map(json.dumps, begins[4:]))
    # The bundled model ends its answer itself, the other one never does.
    length = '"max_tokens": 64' if own else '"max_tokens": 32, "ignore_eos": true'
    server, metrics = (f"localhost:{port}" for port in PORTS)
    return [
        Step(
            "Serve, and what the log says of sere",
            f"VLLM_PLUGINS=sere python -m vllm.entrypoints.openai.api_server --model {model} --enforce-eager "
            f'--additional-config \'{{"sere": {{{table}"metrics_port": {PORTS[1]}}}}}\' '
            "2>&1 | grep --line-buffered 'sere:'",
            serves=True,
        ),
        Step(
            "Eight requests at once",
            f"curl --silent {server}/v1/completions --header 'Content-Type: application/json' "
            f'--data \'{{"prompt": [{prompts[0]},\n    {prompts[1]}],\n'
            f'    "temperature": 0, {length}}}\' | grep -o \'"text":"[^"]*"\'',
        ),
        Step(
            "Experts read, before and after",
            f"curl --silent {metrics}/metrics | grep '^sere_layer_distinct'",
        ),
        Step("All statistics", f"curl --silent {server}/v1/sere/stats"),
    ]


def groups(given: Sequence[Step]) -> list[list[Step]]:
    """Return the steps one by one, but a server together with all steps after it."""
    for at, step in enumerate(given):
        if step.serves:
            return [[one] for one in given[:at]] + [list(given[at:])]
    return [[step] for step in given]


def typed(line: str) -> str:
    """Return a command on as many lines as it needs, each but the last with a backslash at its end."""
    found = [""]
    for part in re.split(r" (?=--|2>&1 |\| )", line):
        if not found[-1]:
            found[-1] = part
        elif len(found[-1].rpartition("\n")[2]) + len(part.partition("\n")[0]) + 3 > COLUMNS:
            found.append(f"    {part}")
        else:
            found[-1] += f" {part}"
    return " \\\n".join(found)
