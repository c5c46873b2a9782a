"""Events on their way to sessions.

session        the state, limits and positions of one connection
hub            where the events of one channel meet the local sessions
shared_frames  an event's frame in every form, encoded once for all sessions
subscriptions  the channels that this node needs, and the messages that arrive on them
catchup        feeds a session that is behind from the log
"""
