"""What is measured about a file as llama.cpp runs it: memory under a hard limit, speed, energy, quality.

Every measurement runs in a child process; ``counters/`` has one energy counter a file.
"""
