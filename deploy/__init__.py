"""How Linnet is run outside a cluster: the hash-locked wheels, an embedded Valkey, and the local runner.

embedded.py  a Valkey server as a child process
plan.py      what `make up` runs, decided before anything is started
local.py     `make up`: one embedded Valkey, one router, two gateways, in the foreground
stack.py     `make stack`: the set-up of compose.yaml (load balancer, Prometheus, Alertmanager) without containers
names.py     the stack's name server
prepare.py   secrets and a certificate for set-ups that were given none
"""
