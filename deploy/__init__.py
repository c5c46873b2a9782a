"""How Linnet is run outside a cluster: the hash-locked wheels, an embedded Valkey, and the local runner.

embedded.py  a Valkey server as a child process
plan.py      what `make up` runs, decided before anything is started
local.py     `make up`: one embedded Valkey, one router, two gateways, in the foreground
"""
