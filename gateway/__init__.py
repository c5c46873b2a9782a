"""The edge: WebSockets in, events out. Holds nothing that outlives a connection.

node            one process: its parts, and what they share
app             the public application: who may upgrade
wsprotocol      one WebSocket connection: callbacks between transport and session
wsupgrade       how it begins: the upgrade request and the ASGI application's answer
wsframes        RFC 6455 frames and permessage-deflate, no I/O
session         one connection's states, limits and what it has
connect         from `hello` to `welcome`
commands        what a client may say: the table, and a handler each
sending         what puts an event into a log: send, edit, delete, react
hub             channel to local sessions: frame once, write to all
frames          an event's frame in every form, made once for all sessions
catchup         feeds sessions that are behind from the log
subscriptions   which channels this node needs, and what comes from them
audits          what Redis says against what is here
clock           heartbeats and deadlines of all sessions
watches         presence for those who asked
lease           this node's lease, the leases of others, who has just gone
drain           paced shutdown
"""
