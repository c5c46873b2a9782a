"""The core of Linnet, and the process that finishes what gateways began.

__main__    start, serve and stop one router process
api/        the HTTP API
jobs/       work that no request waits for: finishing conversations, pushes, tidying
process/    what every Linnet process is on the outside
store/      the only code that talks to Redis
tls         TLS files that are read anew when they change
contract/   what gateways and routers agree on; pure, no I/O

A package imports only packages below it in this list; a gateway imports `process/`, `store/` and `contract/`.
"""
