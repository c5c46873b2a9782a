"""Work of a router that no request waits for.

finisher   finishes conversations that are marked dirty: deliver again, set push deadlines, trim
webhooks   posts pushes for users whose devices did not get an event in time
janitor    removes the rows of gateways whose lease ended long ago
row_audit  restores rows of users that a server has lost
rounds     claims due items and runs their work
"""
