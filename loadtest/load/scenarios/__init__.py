"""What the users do, one file each; `table.py` lists them.

A scenario consists of its options, `prepare` (called in the conductor, blocking, makes users and conversations through
the HTTP API) and `run` (called in every load process with that process's share of the users). Everything that is
measured happens within `worker.measured`.
"""
