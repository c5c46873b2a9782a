"""The only code that talks to Redis and to object stores; it translates their errors to `contract.errors`.

redis/       connections, calls and pub/sub
functions/   the Lua functions; a function, its one Python caller and its test share a name
conversations, users, files, resumable, presence, dirty, accounts, pushes, state, pairs, people, profiles   one file per
             part of the domain: builds keys and arguments, calls a function, reads its reply
moderation, audit, reports   further ones of these
directory    all users and conversations, page by page, for admins
rules        who may post and add members in a conversation, and slow mode
appends, heads, members, openings   parts of `conversations`: what an append takes and answers, heads of many at once,
             pages of members, roles in many conversations
sync, rows   parts of `users`: the registering and audit of a session, the user's rows of conversations
attaching, file_records    parts of `files`: the files of a message to append, what Redis has of a file
moved, searchers    what has moved, for the index of search; which routers keep it
due          which due lists have items that are due
cursor_keys  calls of functions that use the cursors of all devices of a user
direct       the creation of a direct conversation by its first message
contacts     the copies of pairs' records and of profiles in users' slots
deployment   whether this process belongs to the deployment in the database, and the names of its channels
durability   decides when an answered append is kept
observe      turns the counts of the connections into metrics
objects      an object store: a folder, S3, Google Cloud Storage or Azure
answers      awaits replies that the store gives by callback

The files of the domain import `redis/`, `due`, `cursor_keys` and their own parts, and never each other.
"""
