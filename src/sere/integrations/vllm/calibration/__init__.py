"""What calibration sees of an engine: each MoE layer's rows, and its own expert kernel to compute with."""
