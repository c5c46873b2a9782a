"""A client's command → Redis → its answer.

dispatch  the table of states and commands, the rates, and the handlers of a ready session
connect   from `hello` to `welcome`
sending   commands that append an event: send, edit, delete, react
"""
