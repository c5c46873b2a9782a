"""The only code that talks to Redis; it translates Redis's errors to `contract.errors`.

redis/       connections, calls and pub/sub
functions/   the Lua functions; a function, its one Python caller and its test share a name
conversations, users, files, resumable, presence, dirty, accounts, pushes, state, pairs, people, profiles   one file per
             part of the domain: builds keys and arguments, calls a function, reads its reply
cursor_keys  calls of functions that use the cursors of all devices of a user
direct       the creation of a direct conversation by its first message
contacts     the copies of pairs' records and of profiles in users' slots
deployment   whether this process belongs to the deployment in the database, and the names of its channels
durability   decides when an answered append is kept
observe      turns the counts of the connections into metrics
answers      awaits replies that the store gives by callback

The files of the domain import `redis/` and `cursor_keys`, and never each other.
"""
