"""Formats and rules that both processes share: functions, structs and tables, no I/O.

wire        the client's commands and events as typed structs
codecs      the two encodings of the wire, and its JSON Schema
integers    integers that arrive as floats
packing     the values that a body may contain, and their bytes
stamp       an event's bytes with their fixed-width slots, as log and bus carry them
files       the files of a message, as clients name them and events describe them
addressing  the conversations that a user may name
text        the names and titles that other users may see
errors      the error tree and the one table from it to wire codes, close codes and HTTP status
keys        every Redis key and channel
tags        the hash tags of partitions, of which a deployment has one of two sets
state       the keys of a user's state
load        the load of a process, as its lease has it
signals     the hints that a channel carries beside events
clocks      this node's clock and Redis's, and whether they agree
tokens      the user that a token names, and the check of a token against keys
verifier    the keys of a process, and when the provider's are fetched again
origins     the browser origins that may connect
words       the words of a text, as search compares them
settings    every environment variable
metrics     every Prometheus metric
"""
