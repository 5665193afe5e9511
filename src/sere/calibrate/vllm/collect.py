"""Run the calibration tokens through an engine, and gather what its workers measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

import sere.errors
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.packing import Tokens
from sere.calibrate.pass_folder import PassFolder
from sere.calibrate.progress import progress_bar
from sere.calibrate.results import Results
from sere.calibrate.routing import choose_tokens
from sere.calibrate.vllm import worker
from sere.calibrate.vllm.worker import FoundLayer, Task
from sere.calibrate.vocabulary import check_largest
from sere.errors import EngineError, name_some
from sere.identity import ModelIdentity, architecture_of
from sere.structure import model_name
from sere.warn_once import WarnOnce

logger = logging.getLogger(__name__)


class EngineResults(NamedTuple):
    """What an engine measured.

    Attributes:
        results: Of all layers.
        identity: Which model it was.
        kernels: Class names of its expert kernels.
    """

    results: Results
    identity: ModelIdentity
    kernels: tuple[str, ...]


def collect_in_engine(
    llm: Any, tokens: Tokens, config: CalibrationConfig, work: PassFolder | None = None
) -> EngineResults:
    """Run the tokens as prompts; return every layer's similarities and its routing.

    Args:
        llm: vLLM's ``LLM``, started to calibrate and idle.
        tokens: The calibration tokens.
        config: What to compute.
        work: Where sums are kept, and those of an interrupted run are; None keeps nothing.

    Raises:
        DataError: A token is beyond the model's embedding.
        UnsupportedModel: A layer is not the weighted sum of its experts, or is never called.
        UnsupportedEngine: The engine's workers do not know sere.
        EngineError: A worker failed, or the engine did not run each token once, in order.
        InputError: Hidden states, gate weights or outputs are NaN or infinite, or kept sums are damaged.
    """
    model_config = llm.llm_engine.vllm_config.model_config
    check_largest(int(tokens.ids.max()), tokens.tokenizer, SimpleNamespace(config=model_config.hf_config))
    plain = replace(config, progress=False, engine_options=None)
    total, begun = tokens.num_tokens, 0 if work is None else work.done
    # Workers may have another current folder.
    folder = None if work is None else work.path.resolve()
    task = Task(plain, choose_tokens(tokens, config.seed).positions, total, folder, begun)
    _ask(llm, worker.begin, task)
    done, warn = begun, WarnOnce(logger)
    with progress_bar(config.progress, total, "calibrating", done=begun) as bar:
        for batch in tokens.batches(config.batch_size, begun):
            _run(llm, batch, done // tokens.seq_len)
            done += batch.numel()
            for answer in _ask(llm, worker.progress):
                if answer["rows"] != done - begun:
                    raise EngineError(
                        f"expected the engine to compute {done - begun} tokens of texts so far, it computed "
                        f"{answer['rows']}; start without what caches or adds tokens (--engine-option)"
                    )
            bar.update(batch.numel())
            if work is not None and work.is_due(done, total):
                _say_unseen(_ask(llm, worker.save, task, done), warn)
                work.finish(done, total)
    found: dict[int, FoundLayer] = {}
    for answer in _ask(llm, worker.finish, task):
        found |= answer["layers"]
    results = Results(config.metrics)
    for index, layer in sorted(found.items()):
        results.add(index, layer.result)
    kernels = sorted({layer.kernel or "unknown" for layer in found.values()})
    return EngineResults(results, _identity(model_config, found), tuple(kernels))


def _run(llm: Any, batch: Tensor, first: int) -> None:
    """Let the engine read some texts, ``[B, S]``, as prompts named by their numbers from ``first`` on."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    for number, text in enumerate(batch.tolist(), first):
        engine.add_request(str(number), {"prompt_token_ids": text}, params)
    while engine.has_unfinished_requests():
        engine.step()


def _say_unseen(saved: Sequence[dict[str, Any]], warn: WarnOnce) -> None:
    """Warn once if files that workers have written are not there for this process.

    Args:
        saved: Answers of `sere.calibrate.vllm.worker.save`.
        warn: Of this run.
    """
    written = [answer["file"] for answer in saved if answer["file"] is not None]
    if unseen := [file for file in written if not Path(file).is_file()]:
        warn(
            "unseen",
            "sere: workers have kept their sums in files that are not here (%s), as if they ran on machines "
            "with disks of their own. After an interruption, the same command goes on only if each worker "
            "runs where it ran before, and at the end these files stay there. Give a folder that all "
            "machines share (--work-dir, work_dir)",
            name_some(unseen),
        )


def _ask(llm: Any, call: Callable[..., Any], *args: Any) -> list[dict[str, Any]]:
    """Call a function of `sere.calibrate.vllm.worker` in all workers; raise the first error that one returns.

    Raises:
        SereError: What a worker refused.
        EngineError: A worker failed.
    """
    answers: list[dict[str, Any]] = llm.collective_rpc(call, args=args)
    for rank, answer in enumerate(answers):
        if "error" in answer:
            name, text = answer["error"]
            raise getattr(sere.errors, name)(text)
        if "failure" in answer:
            raise EngineError(f"worker {rank} failed while it calibrated: {answer['failure']}")
    return answers


def _identity(model_config: Any, found: dict[int, FoundLayer]) -> ModelIdentity:
    return ModelIdentity(
        name=model_name(model_config.hf_config) or str(model_config.model).rstrip("/").rpartition("/")[2],
        architecture=architecture_of(model_config.hf_text_config),
        layer_names={index: layer.name for index, layer in found.items()},
        experts={index: layer.num_experts for index, layer in found.items()},
        slots={index: layer.top_k for index, layer in found.items()},
    )
