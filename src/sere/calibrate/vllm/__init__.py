"""Calibrate within vLLM: any model and quantization that it serves, through its own expert kernels."""
