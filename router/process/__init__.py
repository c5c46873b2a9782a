"""The outside of every Linnet process: the only I/O that gateway and router share, except for the store.

admin        /livez, /readyz, /joinz, /metrics
bounded      HTTP/1.1 with bounds on time and size
breaker      whether a server whose answers are missing is asked
check_store  what a Redis lacks, in sentences, for `python -m router check-store`
clocks       compares this node's clock with Redis's
descriptors  the limit of file descriptors, and a reserve that public connections do not use
forwarded    the client's address behind proxies
hooked       appends that the pre-send hook has let through
http_client  bounded requests to a URL of the operator
isolate      runs the entries of a round, each protected from the exceptions of the others
jwks         fetches the identity provider's keys
logs         the two log formats, both without secrets
loop         the lag of the event loop, and the load of the process
poster       signed posts to a URL of the operator
run          the life of a process, from its first socket to its exit
send_hook    asks the pre-send hook
serving      sockets and uvicorn, as both processes use them
spans        OpenTelemetry's SDK and the export to a collector; imported only if traces are on
tracing      the sampling of events, and their spans
"""
