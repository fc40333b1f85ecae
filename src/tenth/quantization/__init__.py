"""Weights as codes: ggml's encoders, grids, error feedback, trained scales, and what each type costs.

It ends with the GGUF written as a plan says.
"""
