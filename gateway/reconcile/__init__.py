"""Redis's truth compared with the sessions and hubs of this node.

audits   once per heartbeat: compares hubs with heads, and sessions with their rows
"""
