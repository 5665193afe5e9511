"""Tables of rules at equal numbers of experts: which experts a step reads, what replaces the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, log, sqrt
from typing import Any

from cells import conditions, table
from records import Record, read_lines
from sere.eval.statistics.by_prompt import student_t

SERE, FORMER = "s4/similar", "w1/similar"
RIVAL = "rival/"
GAIN = "s4/similar,gain="

# What each fill and target is, in the order of the tables.
FILLS = {
    "s4": "Σ w⁴ x sensitivity", "s4^0.5": "Σ w⁴ x √sensitivity", "s6": "Σ w⁶ x sensitivity",
    "w1": "Σ w", "w2": "Σ w²", "w3": "Σ w³", "w4": "Σ w⁴", "w6": "Σ w⁶", "wmax": "largest w",
    "rel3": "Σ (w / row's largest)³", "rel4": "Σ (w / row's largest)⁴",
    "gap3": "Σ w³ (1 - similarity to P)", "loss3": "Σ w³ ‖Y‖² (1 - similarity to P)",
    "cover3": "greedy cover of Σ w³",
    "row2^0.5": "Σ w² √(the row's loss)", "rows2^1.5": "greedy, Σ (row's lost w²)^1.5",
    "rows2^2": "greedy, Σ (row's lost w²)²", "rows2^3": "greedy, Σ (row's lost w²)³",
    "rows3^1.5": "greedy, Σ (row's lost w³)^1.5",
    "free3": "Σ w³, no guarantee", "free4": "Σ w⁴, no guarantee",
    "level3": "Σ w³ above a level", "left3": "all but a share of Σ w³",
    "w3@first=1.5": "Σ w³, layer 0 x 1.5", "w4@first=1.5": "Σ w⁴, layer 0 x 1.5",
    "w6@first=1.5": "Σ w⁶, layer 0 x 1.5",
    "xshare": "XShare", "budget": "XShare, no guarantee",
}  # fmt: skip
TARGETS = {
    "similar": "similarity",
    "similar,scores=0.05": "similarity + 0.05 x relative gate",
    "similar,scores=0.1": "similarity + 0.1 x relative gate",
    "similar,scores=0.3": "similarity + 0.3 x relative gate",
    "similar,own=0.1": "similarity + 0.1 x own relative weight",
    "similar,own=0.3": "similarity + 0.3 x own relative weight",
    "similar,tie=0.02": "gate among those within 0.02",
    "similar,metric=rest": "similarity of lighter slots",
    "similar,metric=rest2": "the same, tokens counted by w²",
    "similar,metric=squared": "similarity, tokens counted by w²",
    "similar,metric=signed": "similarity, negative factors too",
    "similar,shrink=0.7": "similarity, factors x 0.7",
    "together": "for the row's whole loss",
    "similar,factors=0": "similarity, no factors",
    "similar,metric=frobenius": "`frobenius`, no factors",
    "drop": "dropped",
    "drop,renormalize=0.3": "dropped, power 0.3 of the sums",
    "refill": "the router's next best (OEA)",
    "random": "random, no factors",
}


def ratio(pairs: Sequence[tuple[Record, Record]]) -> tuple[float, float, float]:
    """Return the geometric mean over cells of total divergence to the other's, with its 95 % interval.

    The unit is the prompt; cells that share prompts are not independent, and are not counted so.

    Args:
        pairs: Per cell a record and the other on the same prompts.

    Source: linearized variance of a logarithm of ratios, as `sere.eval.statistics.by_prompt`.
    """
    value = sum(log(sum(one["kl"]) / sum(other["kl"])) for one, other in pairs) / len(pairs)
    variance, prompts = 0.0, 0
    for prompts_of in {(one["model"], one["seed"]) for one, _ in pairs}:
        same = [(one["kl"], other["kl"]) for one, other in pairs if (one["model"], one["seed"]) == prompts_of]
        influence = [
            sum(a[i] / sum(a) - b[i] / sum(b) for a, b in same) / len(pairs) for i in range(len(same[0][0]))
        ]
        n = len(influence)
        variance += sum(x * x for x in influence) * n / (n - 1)
        prompts += n - 1
    half = student_t(prompts) * sqrt(variance)
    return exp(value), exp(value - half), exp(value + half)


def fill_choices() -> str:
    """Fills, each with the most similar expert of P as the target, by model."""
    return _compared(
        lambda rule: rule.endswith("/similar"), lambda rule: FILLS[rule.split("/")[0]], "filled by"
    )


def fill_targets() -> str:
    """What replaces the others, and rivals as a whole, by model."""
    return _compared(lambda rule: rule == SERE or not rule.endswith("/similar"), _words, "replaced by")


def _compared(chosen: Callable[[str], bool], words: Callable[[str], str], header: str) -> str:
    """Return each rule's divergence over that of sere's rule and of Σ w, and where it is worst."""
    records = _records("divergence")
    models = list(dict.fromkeys(one["model"] for one in records))
    parts = []
    for name, group in [*((model, [model]) for model in models), ("both", models)]:
        found = _by_rule(one for one in records if one["model"] in group)
        rows = [
            [words(rule), *_against(found, rule, SERE), _against(found, rule, FORMER)[0]]
            for rule in _in_order(found)
            if chosen(rule) and {one["model"] for one in found[rule].values()} == set(group)
        ]
        parts.append(f"**{name}**\n\n{table(rows, [header, 'to sere', 'cells', 'worst (B:M)', 'to Σ w'])}")
    return "\n\n".join(parts) + conditions(_last(records))


def fill_rivals() -> str:
    """Rivals whose own options say how many experts are read, beside sere's rule in the nearest cell."""
    records = _records("divergence")
    sere = {(one["model"], one["batch_size"], one["active_experts"], one["seed"]): one
            for one in records if one["rule"] == SERE}  # fmt: skip
    rivals = [one for one in records if one["rule"].startswith(RIVAL)]
    rows = []
    for one in sorted(rivals, key=lambda one: (one["model"], one["active_experts"], one["rule"])):
        own = sere[one["model"], one["batch_size"], one["active_experts"], one["seed"]]
        value, low, high = ratio([(one, own)])
        rows.append([
            one["model"], one["batch_size"], one["rule"].removeprefix(RIVAL),
            *(f"{each['experts']['distinct_after']:.1f}" for each in (one, own)),
            f"{value:.2f} ({low:.2f} to {high:.2f})",
        ])  # fmt: skip
    headers = ["model", "B", "rule", "its experts", "sere's", "KL over sere's"]
    return table(rows, headers) + conditions(_last(rivals))


def fill_cells() -> str:
    """By cell the divergence of sere's rule in nats per token, and those of the others over it."""
    records = _records("divergence")
    parts = []
    for model in dict.fromkeys(one["model"] for one in records):
        found = _by_rule(one for one in records if one["model"] == model)
        rows = []
        for cell in sorted({key[:2] for key in found[SERE]}):
            own = {key: one for key, one in found[SERE].items() if key[:2] == cell}
            experts = next(iter(own.values()))["experts"]
            counted = [f"{experts['distinct_before']:.1f}", f"{experts['distinct_after']:.1f}"]
            others = [_over(found.get(rule, {}), own) for rule in _COMPARED]
            rows.append([*cell, *counted, _nats(list(own.values())), *others])
        headers = ["B", "M", "experts off", "on", "sere", *_COMPARED.values()]
        parts.append(f"**{model}**\n\n{table(rows, headers)}")
    return "\n\n".join(parts) + conditions(_last(records))


def fill_answers() -> str:
    """Right answers by rows of a step and M, against the unmodified model's, question by question."""
    records = _records("answers")
    off = {(one["model"], one["seed"]): one for one in records if one["rule"] == "off"}
    rows = []
    for one in sorted(records, key=lambda one: (one["model"], one["batch_size"], one["active_experts"])):
        base = off[(one["model"], one["seed"])]
        if one is base:
            continue
        gains = [int(a) - int(b) for a, b in zip(one["right"], base["right"], strict=True)]
        n, mean = len(gains), sum(gains) / len(gains)
        half = student_t(n - 1) * sqrt(sum((x - mean) ** 2 for x in gains) / (n - 1) / n)
        experts = one["experts"]
        rows.append(
            [
                one["model"], one["batch_size"], one["active_experts"],
                f"{experts['distinct_before']:.1f}", f"{experts['distinct_after']:.1f}",
                n, f"{100 * base['right'].count('1') / n:.1f}",
                f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})",
            ]
        )  # fmt: skip
    headers = ["model", "B", "M", "experts off", "on", "questions", "right off, %", "difference, points"]
    return table(rows, headers) + conditions(_last(records))


def fill_gain() -> str:
    """By cell and least gain: the experts that a row computes, and the divergence in nats per token."""
    records = [one for one in _records("divergence") if one["rule"].startswith(GAIN)]
    if not records:
        raise FileNotFoundError("no rule with a least gain is recorded")
    gains = sorted({float(one["rule"].removeprefix(GAIN)) for one in records})
    return _by_cell(records, {f"{GAIN}{gain:g}": f"τ = {gain:g}" for gain in gains})


def fill_tails() -> str:
    """By cell and bound: what dropping a row's own light slots, too, saves and costs."""
    records = read_lines("fill_tails.jsonl")
    rules = dict.fromkeys(one["rule"] for one in records)
    return _by_cell(
        records, {one: f"τ = {one.removeprefix(GAIN).replace(',tail=', ', own ')}" for one in rules}
    )


def _by_cell(records: Sequence[Record], rules: Mapping[str, str]) -> str:
    """By cell and rule, whose headers are given: the experts that a row computes, and nats per token."""
    cells: dict[tuple[str, int, int], dict[str, Record]] = {}
    for one in records:
        cells.setdefault((one["model"], one["batch_size"], one["active_experts"]), {})[one["rule"]] = one
    rows = [
        [*case, *(_pairs_and_nats(found[rule]) if rule in found else "" for rule in rules)]
        for case, found in sorted(cells.items())
    ]
    return table(rows, ["model", "B", "M", *rules.values()]) + conditions(_last(records))


def _pairs_and_nats(record: Record) -> str:
    return f"{record['experts']['pairs_per_row']:.1f}, {_nats([record])}"


_COMPARED = {
    FORMER: "Σ w", "w4/similar": "Σ w⁴", "s4/drop": "dropped", "s4/refill": "OEA",
    "s4/random": "random", "xshare/refill": "XShare",
}  # fmt: skip


def _records(measure: str) -> list[Any]:
    return [one for one in read_lines("fill_rules.jsonl") if one["measure"] == measure]


def _by_rule(records: Iterable[Record]) -> dict[str, dict[tuple[int, int, str, int], Record]]:
    found: dict[str, dict[tuple[int, int, str, int], Record]] = {}
    for one in records:
        key = (one["batch_size"], one["active_experts"], one["model"], one["seed"])
        found.setdefault(one["rule"], {})[key] = one
    return found


def _in_order(found: Mapping[str, Any]) -> list[str]:
    fills, targets = list(FILLS), list(TARGETS)

    def place(rule: str) -> tuple[bool, int, int]:
        fill, target = rule.split("/", 1)
        return fill in ("xshare", "budget"), targets.index(target), fills.index(fill)

    return sorted((rule for rule in found if not rule.startswith((RIVAL, GAIN))), key=place)


def _words(rule: str) -> str:
    fill, target = rule.split("/", 1)
    if fill in ("xshare", "budget"):
        return FILLS[fill]
    return TARGETS[target] if fill == "s4" else f"{FILLS[fill]}; {TARGETS[target]}"


def _against(found: Mapping[str, Mapping[Any, Record]], rule: str, other: str) -> list[str]:
    """Return the ratio to another rule, the number of cells, and the cell with the largest ratio."""
    pairs = {key: (one, found[other][key]) for key, one in found[rule].items() if key in found[other]}
    if rule == other or not pairs:
        return ["1", str(len(found[rule])), ""] if rule == other else ["", "0", ""]
    value, low, high = ratio(list(pairs.values()))
    worst, key = max((sum(one["kl"]) / sum(base["kl"]), key) for key, (one, base) in pairs.items())
    return [
        f"{value:.2f} ({low:.2f} to {high:.2f})",
        str(len(pairs)),
        f"{worst:.2f} ({key[0]}:{key[1]})",
    ]


def _over(found: Mapping[Any, Record], own: Mapping[Any, Record]) -> str:
    """Return the ratio to sere's rule on the prompts of both; a star where its interval leaves out 1."""
    pairs = [(found[key], one) for key, one in own.items() if key in found]
    if not pairs:
        return ""
    value, low, high = ratio(pairs)
    return f"{value:.2f}{'' if low <= 1 <= high else ' *'}"


def _nats(records: Sequence[Record]) -> str:
    """Return the divergence per token over all records, in nats."""
    return f"{sum(sum(one['kl']) for one in records) / sum(sum(one['tokens']) for one in records):.4f}"


def _last(records: Sequence[Record]) -> list[Record]:
    """Return one record of each commit."""
    return list({one["provenance"]["commit"]: one for one in records}.values())
