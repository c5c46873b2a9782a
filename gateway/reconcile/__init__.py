"""Redis's truth compared with the sessions and hubs of this node.

audits             once per heartbeat: compares hubs with heads, and sessions with their rows
sync               a session's question to Redis: is the device still its own, and what moved
membership         sessions enter and leave groups as their rows say
conversation_list  the conversations of a connecting session: their states, starts and pages
gone               the notices that a user no longer has a conversation
held               conversations that a session waits for, because their part of Redis does not answer
outages            connected members are notified of groups whose part of Redis stops answering
resubscribe        after a lost subscription: compares everything with Redis
"""
