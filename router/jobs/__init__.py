"""Work that no request waits for.

finisher   conversations that are marked dirty: deliver again, arm push deadlines, trim
webhooks   pushes for users whose devices did not get an event in time
janitor    gateways whose lease ended long ago, and the rows they left
rounds     claims due work and works it off
post       the HTTP client of the webhooks
"""
