"""Small records, as the commands write them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

MADE = {
    "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.24.0"},
    "machine": {"cpu": "Test CPU", "cores": 2, "threads": 1, "gpu": None},
    "commit": "0123456789abcdef",
    "clean_tree": True,
    "utc": "2026-11-28T05:25:53+00:00",
}
PLAN = {"tasks": {"add": 30, "sort": 20}, "questions_digest": "feedbeef", "max_new_tokens": 16}


def share(value: float, around: float = 0.05) -> dict[str, float]:
    """A value with an interval of this half width."""
    return {"value": value, "low": value - around, "high": value + around}


def answers(
    setting: str, after: float, right: float, *, rows: int = 16, around: float = 0.02
) -> dict[str, Any]:
    """A case of right answers; off has 0.9, and the interval of the difference from it this half width."""
    lost = {} if setting == "off" else {"difference": share(right - 0.9, around)}
    tasks = {name: {"n": n, "share": share(right)} for name, n in (("add", 30), ("sort", 20))}
    return {
        "setting": setting,
        "batch_size": rows,
        "nothing_changed": None,
        "experts": {
            "distinct_before": 40.0,
            "distinct_after": after,
            "layers": [{"index": 0, "distinct_after": after - 1}, {"index": 2, "distinct_after": after + 1}],
        },
        "tasks": {**tasks, "all": {"n": 50, "share": share(right), **lost}},
    }


def evaluation(*cases: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A record of ``sere eval`` with right answers."""
    default = (
        answers("off", 40.0, 0.9),
        answers("sere:active_experts=24", 24.0, 0.89),
        answers("sere:active_experts=12", 12.0, 0.5),
        answers("drop:active_experts=12", 12.0, 0.4),
    )
    model = {"name": "tiny", "digest": "aaaabbbbcccc", "dtype": "float32", "experts_implementation": "eager"}
    record = {
        "format": "sere-eval-2",
        "model": model,
        "plan": PLAN,
        "table": {"metric": "cka", "fingerprint": "123456789abc"},
        "provenance": MADE,
        "cases": list(cases or default),
    }
    return deepcopy(record | changes)


def divergences() -> dict[str, Any]:
    """A record of ``sere eval --prompts``."""
    cases = [
        {
            "setting": setting,
            "batch_size": 16,
            "kl": share(kl, kl / 4),
            "agreement": share(0.98, 0.01),
            "experts": {"distinct_before": 40.0, "distinct_after": after},
            "prompts": {"kl": [kl] * 8},
        }
        for setting, after, kl in (
            ("off", 40.0, 1e-14),
            ("sere", 24.0, 1e-3),
            ("sere:active_experts=12", 12.0, 0.3),
        )
    ]
    plan = {"prompts": {"count": 8}, "prompts_digest": "cafe0123", "max_new_tokens": 16}
    return evaluation(*cases, plan=plan)


def timing(setting: str, rows: int, speedup: float, **changes: Any) -> dict[str, Any]:
    """A record of ``sere bench``."""
    record = {
        "format": "sere-bench-4",
        "setting": setting,
        "batch_size": rows,
        "tpot_ms": {"p20": 9.0, "p50": 10.0, "p80": 12.0},
        "speedup": {"p20": speedup - 0.1, "p50": speedup, "p80": speedup + 0.1},
        "experts": {"distinct_before": 40.0, "distinct_after": 20.0},
        "config": {"prompt": 32, "steps": 16},
        "subject": {
            "model": "tiny",
            "weights": "checkpoint",
            "layers": 2,
            "dtype": "float32",
            "experts_implementation": "eager",
        },
        "provenance": MADE,
    }
    return deepcopy(record | changes)


def tuning() -> dict[str, Any]:
    """A record of ``sere tune`` with one tier, whose layers differ."""
    cell = {
        "active_experts": 20,
        "experts_before": 40.0,
        "experts_after": 20.0,
        "kl": share(0.0015, 0.0004),
        "bytes_ratio": 1.5,
    }
    evidence = {"accepted_kl": 0.002, "by_batch_size": {"8": cell, "16": cell | {"experts_after": 24.0}}}
    tier = {
        "active_experts": [[1, 4], [16, 24]],
        "layers": {"0": [[1, 4], [16, 20]], "2": [[1, 4], [16, 28]]},
        "select_top_k": 1,
        "threshold": 0.0,
        "min_gain": 0.0,
        "evidence": evidence,
    }
    measured = {
        "20": {"experts_after": 20.0, "kl": share(0.002, 0.0005)},
        "30": {"experts_after": 30.0, "kl": share(0.001, 0.0002)},
    }
    sensitivities = [
        {"layers": [index], "sensitivity": value, "measured": value, "standard_error": 0.1}
        for index, value in ((0, 1.4), (2, 0.6))
    ]
    return deepcopy(
        {
            "format": "sere-tune-1",
            "table": "123456789abc",
            "provenance": MADE,
            "model": {"name": "tiny", "digest": "aaaabbbbcccc", "num_experts": 48, "top_k": 4},
            "measured": {"16": measured},
            "layers": {"sensitivities": {"layers": sensitivities}},
            "tiers": {"balanced": tier},
            "texts": {"tuning": {"prompts": 8, "tokens": 90}},
        }
    )


def lm_eval() -> dict[str, Any]:
    """A record of ``sere lm-eval``: a task of right answers, one of log-likelihoods; off and a setting."""

    def case(setting: str, after: float, **differences: dict[str, float] | None) -> dict[str, Any]:
        experts = {"distinct_before": 40.0, "distinct_after": after, "slots_rerouted": 1 - after / 40}
        seen = {"experts": experts, "nothing_changed": None}
        right = {"value": after / 50, "interval": share(after / 50), "right_or_wrong": True}
        asked = {"version": 1.0, "questions_digest": "5ca1ab1e0123"}
        words = {"value": 8.25 if setting == "off" else 8.6, "interval": None, "right_or_wrong": False}
        return {
            "setting": setting,
            "batch_size": 16,
            "requests": {"generate_until": seen, "loglikelihood_rolling": seen},
            "tasks": {
                "sums": {
                    "requests": "generate_until",
                    "n": 50,
                    **asked,
                    "metrics": {"exact_match,strict": right | {"difference": differences.get("sums")}},
                },
                "prose": {
                    "requests": "loglikelihood_rolling",
                    "n": 8,
                    **asked,
                    "metrics": {"word_perplexity,none": words | {"difference": differences.get("prose")}},
                },
            },
        }

    plan = {"lm_eval": "0.4.13", "tasks": ["sums", "prose"], "limit": 50, "num_fewshot": 2, "seed": 0}
    cases = [case("off", 40.0), case("sere", 30.0, sums=share(-0.2), prose=share(-0.04, 0.01))]
    return evaluation(
        *cases, format="sere-lm-eval-1", plan=plan | {"phases": "decode", "chat_template": False}
    )


def engine_record(setting: str, **values: Any) -> dict[str, Any]:
    """A record of an engine in a process of its own."""
    machine = {"cpu": "AMD EPYC", "cpu_model": "family 26", "cores": 2, "threads": 2, "gpu": None}
    provenance = {
        "machine": machine, "versions": {"torch": "2"}, "commit": "a", "clean_tree": True,
        "utc": "2026-11-28",
    }  # fmt: skip
    ratio = {"p20": 1.5, "p50": 1.5, "p80": 1.5}
    return {
        "subject": {"model": "m", "layers": 4}, "config": {"mode": "compiled", "start": {}},
        "setting": setting, "batch_size": 8, "load": "B=8", "measure": "tpot",
        "time_ms": {"p50": 40.0}, "tpot_ms": {"p50": 40.0}, "speedup": ratio, "speedup_over_vanilla": ratio,
        "experts": {"distinct_before": 51.0, "distinct_after": 26.0}, "complete_model": None,
        "provenance": provenance,
    } | values  # fmt: skip
