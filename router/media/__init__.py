"""Files that people send: received, checked, stored once.

types       the structs between receiving, preparing and storing, and the errors of an upload
receiving   the bytes of an upload in a file of its own
uploads     from received bytes to a file that can be sent
names       the names of objects in the store
serving     headers and ranges of an answer with a file
places      how many uploads run at once
links       links to routers that need no token
signed      links to the object store that need no token
parts       all of these, made once per router
prepare     from received bytes to what is stored: type, scan, worker
signatures  the type of a file by its first bytes
scan        clamd, or a scanner behind HTTP
workers     starts the worker processes, gives them jobs, replaces them
turns       a bounded number of uploads in work, and of those that wait for their turn
worker/     the sandboxed process that reads pictures and recordings
"""
