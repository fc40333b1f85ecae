"""The original model run over text by transformers, one block in memory at a time.

What is kept: how much each weight matters, and what the original answers.
"""
