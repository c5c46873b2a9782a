"""The web client, and how a router serves it. `page/` has the client itself: modules that a browser runs as they are.

serve      the paths of the page, around the HTTP API
site       all files of the page, read once, under one digest
headers    what every answer of a router says to browsers, and what the page may do
"""
