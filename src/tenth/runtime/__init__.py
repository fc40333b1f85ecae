"""llama.cpp and what runs around it: bindings, server, chat, hard limits, and the folder of a finished
bundle.

Needs no torch: this is what runs on a device.
"""
