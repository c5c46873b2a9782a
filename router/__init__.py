"""The core of Linnet, and the process that finishes what gateways began.

__main__    start, serve and stop one router process
web/        the web client, served at `/`
api/        the HTTP API
sdk/        clients in Python and JavaScript; they import nothing of the server
media/      files that people send: received, checked, stored once
jobs/       work that no request waits for: finishing conversations, pushes, tidying
process/    what gateway and router share as processes: start, ports, logs, traces
store/      the only code that talks to Redis
tls         TLS files that are loaded again when they change
contract/   the formats and rules that gateways and routers share; pure, no I/O

A package imports only packages below it in this list; a gateway imports `process/`, `store/` and `contract/`.
"""
