"""The web client, and how a router serves it. `page/` has the client itself: plain modules, without a build step.

serve      the paths of the page, around the HTTP API
site       all files of the page, read once, under one digest
joined     joins modules that are always loaded together to one file
headers    what every answer of a router says to browsers, and what the page may do
"""
