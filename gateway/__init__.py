"""The edge: it holds the clients' WebSockets and keeps no state that outlives a connection.

__main__    start, serve and drain one gateway process
app         the public application: checks upgrade requests and attaches a session to each connection
node        the composition root: builds every part of one gateway
clock       one timer for the heartbeats, audits, deadlines and marks of all sessions
drain       the paced shutdown
admission   which upgrade requests are admitted
tasks       the tasks that end with the node
commands/   a client's command → Redis → its answer
reconcile/  Redis's truth compared with sessions and hubs
presence/   which users are online
delivery/   events → sessions
websocket/  bytes ↔ messages; imports nothing of Linnet

A package imports only packages below it in this list.
"""
