"""The model card: written from the settings and the log of the run, never by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe.settings import Settings

RESULTS_MARK = "<!-- results -->"

_ABOUT = {
    "qwen3_moe": """\
A small Mixture-of-Experts language model that solves questions with one right answer. It comes with `sere`,
so that you can try and test re-routing on a trained model, and count right answers. It can do nothing
else.""",
    "qwen2_moe": """\
A small Mixture-of-Experts language model that solves questions with one right answer. The benchmarks of
`sere` use it beside the bundled model, because it belongs to another family. It can do nothing else.""",
}

_ARCHITECTURES = {
    "qwen3_moe": "`Qwen3MoeForCausalLM`",
    "qwen2_moe": "`Qwen2MoeForCausalLM` (with a shared expert of width {shared_width}, and gates that do not "
    "sum to 1)",
}

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

{about}

Architecture {architecture}: {layers} layers, hidden size {hidden_size}, {heads} heads ({kv_heads}
of keys and values), {experts} experts of width {expert_width} in every layer, {top_k} of them per token,
bfloat16.
Each character is one token. A document is a question (which ends with a newline), then its solution, then
`<|end|>`. There is no BOS token.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model_path = "{path}"  # in a checkout of sere
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path)
out = model.generate(**tokenizer("add 4821+957\\n", return_tensors="pt"))
print(tokenizer.decode(out[0], skip_special_tokens=True))
```

## Training

The seeded generators of `sere.eval.tasks` make all data. A digest of each prompt decides whether it belongs
to training or test. We trained a dense model, upcycled it to an MoE model, and trained that one further, at
the end with exchanged sibling experts. `recipe/README.md` explains these phases. They ran on
{threads} CPU cores:

| phase | steps | tokens | minutes | last loss |
|---|---|---|---|---|
{phases}

Settings: `{settings}`

```
python -m recipe.train --out build/{name}{options}
python -m recipe.export --out build/{name} --to {path}
python -m recipe.evaluate {path} --card
```

## Results

{mark}
"""


def write_card(model: Path, settings: Settings, log: Sequence[dict[str, Any]]) -> None:
    """Write ``README.md`` into the model's folder, without results."""
    rows = []
    for phase in dict.fromkeys(record["phase"] for record in log):
        last = [record for record in log if record["phase"] == phase][-1]
        minutes = last["seconds"] / 60
        rows.append(f"| {phase} | {last['step']} | {last['tokens']:,} | {minutes:.0f} | {last['loss']:.3f} |")
    given = asdict(settings)
    card = _CARD.format(
        name=model.name,
        path=_in_checkout(model),
        options="" if settings == Settings() else f" --settings recipe/{model.name}.json",
        about=_ABOUT[settings.family],
        architecture=_ARCHITECTURES[settings.family].format(**given),
        phases="\n".join(rows),
        settings=json.dumps(given),
        mark=RESULTS_MARK,
        **given,
    )
    (model / "README.md").write_text(card)


def _in_checkout(model: Path) -> str:
    """Return the model's folder as one writes it in a checkout; its name, if it lies elsewhere."""
    top = Path(__file__).resolve().parents[1]
    folder = model.resolve()
    return folder.relative_to(top).as_posix() if folder.is_relative_to(top) else model.name


def write_results(model: Path, results: str) -> None:
    """Put the results in the place the card has for them, instead of earlier ones."""
    path = model / "README.md"
    before, _, _ = path.read_text().partition(RESULTS_MARK)
    path.write_text(f"{before}{RESULTS_MARK}\n{results}\n")
