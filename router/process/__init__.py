"""What every Linnet process is on the outside; the only I/O that both share beside the store.

admin    /livez, /readyz, /metrics
bounded  HTTP/1.1 that neither slowness nor endless heads can hold
clocks   whether this node's clock and Redis's agree
descriptors their limit, and a reserve that public connections leave alone
forwarded whose connection it is, behind proxies
http_client bounded requests to a URL of the operator's
isolate  a round's entries: one that raises costs itself only
jwks     fetches the identity provider's keys
logs     the log's two forms, and no secret in either
loop     how late the event loop runs
run      a process from its first socket to its last
serving  sockets and uvicorn, as both processes use them
spans    OpenTelemetry's SDK and the way to a collector; loaded only when traces are on
tracing  which events are traced, and what of their way becomes a span
"""
