"""Weft's own small language model: corpus, tokenizer, training, and the trained weights themselves."""
