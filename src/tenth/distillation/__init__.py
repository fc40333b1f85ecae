"""Training that brings a smaller model back towards the original's distribution.

As a whole, block by block, with adapters, or over another vocabulary.
"""
