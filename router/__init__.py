"""The core of Linnet, and the process that finishes what gateways began.

contract/   what gateways and routers agree on; pure, no I/O
store/      the only code that talks to Redis
process/    what every process is on the outside
finisher    dirty conversations: deliver again, arm push deadlines, trim
janitor     dead gateways and what they left
webhooks    push for users whose devices did not get an event in time
api         the HTTP API: its table; `api_*` its handlers and structs, `openapi` its document

Below them: `rounds` claims what is due and works it off, `answers` awaits what the store answers by callback,
`limits` and `passwords` bound what callers of the API may cost.
"""
