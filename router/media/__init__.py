"""Files that people send: received, checked, stored once.

types       the structs between receiving, preparing and storing, and the errors of an upload
receiving   the bytes of an upload in a file of its own
uploads     from received bytes to a file that can be sent
objects     the object store: a folder, S3, Google Cloud Storage or Azure
names       the names of objects in the store
serving     headers and ranges of an answer with a file
places      how many uploads run at once
links       links that need no token
parts       all of these, made once per router
"""
