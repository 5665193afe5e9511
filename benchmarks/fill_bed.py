"""A model with its texts, on which ``fill_rules.py`` measures rules."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fill_choices import Step, fill_of
from fill_facts import LayerFacts, measure_facts
from fill_policies import RivalPolicy, StudyPolicy, TallyingPolicy
from sere.eval.decoding.greedy import decode, stop_rule
from sere.eval.decoding.prefill import Prefilled, prefill
from sere.eval.tasks import Question, mixed
from sere.eval.text import Text, score_texts
from sere.policies.spec import parse_spec
from sere.similarity.layer import LayerSimilarity
from sere.structure import identify
from sere.table import SimilarityTable

OFF = "off"
ROWS = 64
MOST_DENSE = 128
MAX_NEW_TOKENS = 96


def dense_experts(module: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """All experts that occur for all rows, as two products: faster on a few rows of models this small."""
    if len(hidden) > MOST_DENSE:
        result: Tensor = type(module).forward.__wrapped__(module, hidden, ids, weights)
        return result
    used, ids = torch.unique(ids, return_inverse=True)
    first, second = module.gate_up_proj[used], module.down_proj[used]
    E, _, H = first.shape
    gate, up = (hidden @ first.reshape(-1, H).T).reshape(len(hidden), E, -1).chunk(2, -1)
    share = torch.zeros(len(hidden), E, dtype=hidden.dtype).scatter_add(1, ids, weights)
    inner: Tensor = module.act_fn(gate) * up * share[..., None]
    return torch.mm(inner.flatten(1), second.transpose(1, 2).reshape(-1, H))


def load(folder: Path) -> tuple[Any, Any]:
    """Return model and tokenizer, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS["dense"] = dense_experts
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def solutions(tokenizer: Any, questions: Sequence[Question]) -> list[Text]:
    """Return solutions as texts whose questions are read by prefill."""
    texts = []
    for one in questions:
        prompt, answer = (
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (one.prompt, one.solution)
        )
        texts.append(Text([*prompt, *answer, tokenizer.eos_token_id], len(prompt)))
    return texts


def calibrated_levels(fill: str, facts: Mapping[int, LayerFacts], B: int, M: int) -> dict[int, float]:
    """Return by layer the number at which a fill with a level reads M experts in the mean.

    Measured on calibration tokens, in groups of B of them, each of another place.
    """
    if not fill.startswith(("level", "left")):
        return {}
    found, choose = {}, fill_of(fill)
    for index, one in facts.items():
        order = torch.randperm(len(one.ids), generator=torch.Generator().manual_seed(1))
        order = order[: len(order) // B * B]
        ids, w = (part[order].reshape(-1, B, part.shape[1]) for part in (one.ids, one.weights))
        low, high = 0.0, float(B)
        for _ in range(40):
            middle = (low * high) ** 0.5 if low else high / 1e6 if high > 1e-5 else high / 2
            step = Step(ids, w, torch.empty(0), one, M, middle)
            if float(choose(step).sum(1).double().mean()) > M:
                low = middle
            else:
                high = middle
        found[index] = high
    return found


class Bed:
    """A model with its facts and texts.

    Args:
        name: What records call it.
        folder: Its folder.
        cache: Where its facts are kept between runs, or None.
    """

    def __init__(self, name: str, folder: Path, cache: Path | None, per_task: int, seed: int) -> None:
        self.name, self.seed = name, seed
        self.model, self.tokenizer = load(folder)
        tokenizer = self.tokenizer
        if cache is not None and cache.is_file():
            self.facts = torch.load(cache, weights_only=False)
        else:
            self.facts = measure_facts(self.model, tokenizer)
            if cache is not None:
                torch.save(self.facts, cache)
        self.questions = mixed(split="test", per_task=per_task, seed=seed)
        self.texts = solutions(tokenizer, self.questions)
        self.model.set_experts_implementation("dense")
        # What prefill reads is the same under every rule.
        keep = 1 + max(text.scored for text in self.texts)
        self.read = list(prefill(self.model, [text.tokens for text in self.texts], keep=keep))

    def _read(self, *_: Any, **__: Any) -> Iterator[Prefilled]:
        return iter(self.read)

    def table(self) -> SimilarityTable:
        """Return the facts as a table, for rules that come with sere."""
        layers = {
            index: LayerSimilarity(
                one.similarity["projection"].float().clamp(0, 1).fill_diagonal_(1),
                one.scale["projection"].float(), one.sensitivity.float(),
            )
            for index, one in self.facts.items()
        }  # fmt: skip
        return SimilarityTable(
            layers, identify(self.model), metric="projection", metric_parameters={}, calibration_tokens=0,
            data_digest="", seed=0, provenance={},
        )  # fmt: skip

    @contextmanager
    def applied(self, rule: str, B: int, M: int) -> Iterator[TallyingPolicy]:
        """Apply a rule, in steps of B rows."""
        from sere.integrations.transformers import apply

        torch.manual_seed(0)
        fill, _, rest = rule.partition("/")
        policy: TallyingPolicy
        if fill == "rival":
            policy = RivalPolicy(parse_spec(rest).build(self.table()), B)
        else:
            policy = StudyPolicy(rule, self.facts, B, M, calibrated_levels(fill, self.facts, B, M))
        with apply(self.model, policy=policy, pad_token_id=-1) as handle:
            handle.quiet = True
            yield policy

    def divergence(self, rule: str, B: int, M: int) -> dict[str, Any]:
        """Measure KL(unmodified ‖ rule) of the solutions, in nats per solution."""
        started = time.perf_counter()
        with patch("sere.eval.text.prefill", self._read), self.applied(rule, B, M) as policy:
            scores = score_texts(self.model, self.texts, batch_size=max(B, ROWS))
        return {
            "tokens": [score.tokens for score in scores],
            "kl": [float(f"{score.kl:.4g}") for score in scores],
            "experts": policy.experts(), "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip

    def answers(self, rule: str, B: int, M: int) -> dict[str, Any]:
        """Let the model answer the questions and say which answers are right, one digit each."""
        started = time.perf_counter()
        stop = stop_rule(self.model, self.tokenizer, MAX_NEW_TOKENS)
        prompts = [text.tokens[: text.read] for text in self.texts]
        size, found = max(B, ROWS), {}
        if rule == OFF:
            decoded = decode(self.model, prompts, batch_size=size, rule=stop)
        else:
            with self.applied(rule, B, M) as policy:
                decoded = decode(self.model, prompts, batch_size=size, rule=stop)
            found = policy.experts()
        texts = map(self.tokenizer.decode, decoded.tokens)
        marks = (one.is_right(text) for one, text in zip(self.questions, texts, strict=True))
        return {
            "right": "".join("01"[mark] for mark in marks),
            "experts": found, "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip
