"""The judge: anyone's compressed model under one set of rules, and nothing taken on trust.

submission.py (a folder is opened, the header read by models/formats/inspect.py)
    -> judge.py: size, division.py, prove, quality, speed, probes, tasks, each in a cell (runtime/sandbox.py)
    -> core/records.py: a Verdict, written with its log; run.py judges many, here or on a cluster (cluster.py)
    -> site.py: the leaderboard
"""
