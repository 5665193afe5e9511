"""``python -m sere.eval.harness``: lm-eval's own command line, with ``sere-hf`` and ``sere-vllm``."""

from __future__ import annotations

from sere.eval.harness.plan import check_version
from sere.eval.harness.vllm import known_as_vllm

# Not imported before it is asked for: it needs vLLM.
_SERVED = ("sere-vllm", "sere.eval.harness.served_model:ServedLM")


def main() -> None:
    """Register the model classes and hand over to lm-eval.

    Raises:
        MissingDependency: lm-eval is missing or too old.
    """
    check_version()
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    import sere.eval.harness.model  # noqa: F401

    name, target = _SERVED
    if name not in model_registry:
        model_registry.register(name, target=target)
    with known_as_vllm():
        cli_evaluate()


if __name__ == "__main__":
    main()
