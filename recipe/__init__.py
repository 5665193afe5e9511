"""The open recipe of the bundled model: tokenizer, dense training, upcycling, MoE training, export."""
