"""The HTTP API.

table          every call, its handler and its application
call           one request: the caller, its rights, its limits, its answer
types          the structs of requests and answers
accounts, conversations, messages   the handlers
openapi        the OpenAPI document, generated from the table and the types
rate_limits    bounds of what callers may cost
passwords      hashing, in few threads
"""
