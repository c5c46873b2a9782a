"""A client's command → Redis → its answer.

dispatch        the table of states and commands, and the way of a message to its handler
connect         from `hello` to `welcome`
authentication  tokens: `auth`, and the identity behind a `hello`
sending         commands that append an event: send, edit, delete, react
cursors         `ack` and `read`
marks           acks and read marks, joined and written once per turn of the clock
ephemeral       `typing`, and signals that no log keeps
user_state      `state`: keys that follow the user to every device
history         `history`: pages of the log on request
rates           how many commands a connection may send
"""
