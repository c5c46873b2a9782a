"""Work of a router that no request waits for.

finisher   finishes conversations that are marked dirty: deliver again, set push deadlines, trim
webhooks   posts pushes for users whose devices did not get an event in time
janitor    removes the rows of gateways whose lease ended long ago
row_audit  restores rows of users that a server has lost, and moves acts that were left behind
sweeper    removes files to which nothing refers, and what broken uploads left
freeing    releases the files of messages that are gone
pair_checks compares copies of contacts and blocks with the pairs' records
upgrades   renews the router's lease, and moves users' rows to a new format once all processes read it
rounds     claims due items and runs their work
"""
