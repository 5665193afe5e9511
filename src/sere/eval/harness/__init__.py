"""Evaluation with lm-eval (LM Evaluation Harness): its tasks and metrics, under every setting.

lm-eval itself is imported inside functions, and in `model`, `engine_model` and `served_model` alone: it is an
optional extra.
"""
