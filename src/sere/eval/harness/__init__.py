"""Evaluation with lm-eval (LM Evaluation Harness): its tasks and metrics, under every setting.

lm-eval itself is imported inside functions and in `model` and `vllm` alone; it is an optional extra.
"""
