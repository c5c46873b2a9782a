"""Files that people send: received, checked, stored once.

types   the structs between receiving, preparing and storing, and the errors of an upload
"""
