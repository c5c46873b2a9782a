"""Programs that load, break and watch a Linnet deployment from outside. No measured process imports anything from here.

`python -m loadtest SCENARIO --target ws://… --api http://… --metrics http://…` loads a running deployment. Without
`--target`, the scenario starts a deployment, loads it and stops it again.

__main__   the command line
load/      load processes, the conductor that synchronizes and measures them, and the scenarios
bench/     the sets behind `make bench`, their promised figures, and reports
chaos/     `make chaos`: a deployment, faults on a seeded schedule, and in proof/ the checker of the promises
peers/     `make bench-peers`: Socket.IO, python-socketio and Django Channels under the same load
canary     synthetic users on a production deployment, and metrics about their messages
api        the HTTP API, as far as tests need it
meters     CPU and memory of every measured process
websocket  a client's WebSocket connection, for both subprotocols
hook       a pre-send hook that fails in every way
frames     the frames that both kinds of client write
ports      free ports for processes that restart on the same port
limits     the limit of open files

Packages import downwards only: peers → bench → load → api, meters, …; canary → chaos → chaos/proof.
`tests/test_architecture.py` holds the table of allowed imports.
"""
