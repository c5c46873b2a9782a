"""The HTTP API.

app            the ASGI application
table          every call with its handler, its structs and its refusals
steps          the steps around every call: authentication, decoding, error answers
call           one call as its handler receives it, and a row of the table
types/         the structs of requests and answers
accounts, profiles, contacts, conversations, messages, commands, sessions, state, uploads, tus   the handlers
search         searches the messages that a user may see
moderation, reports   the handlers of moderation
admin          the calls of the admin view
addresses      gateway addresses that the caller can dial
review         asks the pre-send hook about titles, profiles and contact requests
openapi        the OpenAPI document, generated from the table and the types
rate_limits    rates of addresses and of unknown user names
passwords      password hashing in a few threads
"""
