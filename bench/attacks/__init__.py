"""Attacks of bench/attack.py, one file for what is attacked; each yields what `attack` makes."""
