"""``python -m sere.eval.harness``: lm-eval's own command line, which then knows the model ``sere-hf``."""

from __future__ import annotations

from sere.eval.harness.plan import check_version
from sere.eval.harness.vllm import known_as_vllm


def main() -> None:
    """Register the model class and hand over to lm-eval.

    Raises:
        MissingDependency: lm-eval is missing or too old.
    """
    check_version()
    from lm_eval.__main__ import cli_evaluate

    import sere.eval.harness.model  # noqa: F401

    with known_as_vllm():
        cli_evaluate()


if __name__ == "__main__":
    main()
