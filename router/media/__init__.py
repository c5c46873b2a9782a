"""Files that people send: received, checked, stored once.

types       the structs between receiving, preparing and storing, and the errors of an upload
prepare     from received bytes to what is stored: type, scan, worker
signatures  the type of a file by its first bytes
scan        clamd, or a scanner behind HTTP
workers     starts the worker processes, gives them jobs, replaces them
turns       a bounded number of uploads in work, and of those that wait for their turn
worker/     the sandboxed process that reads pictures and recordings
"""
