"""Search over the words of all messages. The index is derived from the logs, and built again whenever it is lost.

parts      makes the parts of one router
query      what somebody asks for, and what of a text it finds
documents  what of an event is searched
index      the words of one partition's messages, in a file of SQLite
shelf      the files, and the thread in which they are used
owners     which router keeps which partition
indexer    brings the files up to date with the logs
asking     asks the owners of partitions, and answers other routers
"""
