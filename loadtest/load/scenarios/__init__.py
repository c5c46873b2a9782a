"""What users do, one file each; `table.py` lists them.

A scenario is its options, `prepare` (in the conductor, blocking, through the HTTP API: users and conversations) and
`run` (in every load process, with its share of the users). What is measured happens within `worker.measured`.

Adding one: a file here, a row in `table.py`, a test in tests/loadtest.
"""
