"""Tasks with answers: what a model can still do, item by item, so that two models are asked the same.

sets/NAME.toml -> catalogue.py -> harness.py (lm-eval) -> scoring.py on runtimes.py, in a child
                                                       -> textual.py, sandbox.py: programs, words
               -> results.py, by core/statistics.py; evaluate.py is the whole
"""
