"""What both processes agree on; functions, structs and tables, no I/O.

wire      the client's commands and events as typed structs, the two codecs
packing   what a body may hold, and its bytes
stamp     an event's bytes with their fixed-width slots, as log and bus carry them
errors    the error tree and the one table from it to wire codes, close codes and HTTP status
keys      every Redis key and channel
signals   what stands on a channel beside events: hints
clocks    this node's clock and Redis's, and whether they agree
tokens    who a token speaks for
settings  every environment variable
metrics   every Prometheus metric
"""
