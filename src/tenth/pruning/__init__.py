"""Smaller models: what removing channels, heads, blocks or tokens costs, and the model without them.

What stays is refitted in closed form.
"""
