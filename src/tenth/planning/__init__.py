"""The integer program: storage types, KV cache and buffers, chosen under memory, speed and energy.

It sees numbers only: neither a method nor an architecture by name.
"""
