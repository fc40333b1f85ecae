"""The server's parts: a front that anybody may talk to, and a child that holds the model and trusts nobody.

programs --- HTTP on loopback ---> front.py, in this process: who asks (wire.py), what is asked (checks.py,
grammar.py), how many at a time
--- HTTP on a Unix socket of this user, with a key of its own ---> child.py, under the plan's
memory limit; engine.py starts it, and starts it again
"""
