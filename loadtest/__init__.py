"""A load test for a Linnet deployment, of one's own or one that is started for it; and the measurements of the project.

`python -m loadtest SCENARIO --target ws://… --api http://… --metrics http://…` drives a running deployment, a scenario
without a target drives one that is started here and stopped again, and `bench` is the set behind `make bench`.

client       one device of one user, cheap enough to be thousands in a process; checks what it is given
worker       a load process: its clients, the pace, and the barriers at which all processes meet
beats        a pace finer than the timers of a loop
run          the process that conducts the workers and reads the meters
meters       CPU and memory of every process involved, from wherever they can be had
api          the HTTP API, as far as preparing needs it
local        a deployment of its own for the time of a test
ports        ports for processes that take them again and again
floor        what no server can beat: a bare protocol that writes prebuilt frames
results      what was measured, medians of it, and whether all is well
report       results as a table, JSON, an HTML page, pictures
plots        measurements as SVG
scenarios/   what users do, one file each
bench        sets of them, held against the figures that the project promises
peers/       what users pick today, under the same load: `python -m loadtest.peers`, behind `make bench-peers`

chaos        breaks a deployment of its own on a seeded schedule, and prints the verdict
cluster      that deployment: processes that can be killed, a proxy on every link
stores       one Valkey, or primary, replicas and sentinels
proxy        links that can be cut, held up and forgotten
nemesis      what goes wrong when, and the hands that do it
workload     what people do meanwhile
device       one device of one user, as the interface advises a client to behave
websocket    its connection, in either codec
history      what it saw, row by row, on disk
evidence     all that a run leaves behind
checker      proves or refutes the promises from that
account      … of one device
trimmed      … of what the logs do not have any more
verdict      what was found, and what these three share
story        the shortest story of a violation
aftermath    what people noticed of each kind of fault
canary       synthetic users on a real deployment, and metrics of what becomes of their messages

Nothing here is imported by the processes it measures.
"""
