"""Events on their way to sessions.

session        the state, limits and positions of one connection
open_sessions  all sessions of the node, and the writes of one turn of the event loop
hub            where the events of one group or channel meet the local sessions
user_hub       the direct events and signals of one user
subscriptions  the channels that this node needs, and the messages that arrive on them
shared_frames  an event's frame in every variant, encoded once for all sessions
feed           the states of a session that is live or behind, and their transitions
backlog        what a session that is behind still needs, and the next step of its catch-up
catchup        feeds a session that is behind from the log
repair         fills a hub's gap from the log
heartbeats     pings, and the end of silent connections
deadlines      the end of a slow handshake, an expired token and an old connection
"""
