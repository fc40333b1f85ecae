"""The ground that every room stands on: errors, records, the work folder, child processes, statistics.

Nothing here knows what a model, a device or llama.cpp is, beyond the facts of ggml's storage types.
"""
