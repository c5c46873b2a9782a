"""The benchmark sets of the project, and reports of what they measured.

sets      which scenarios each set runs
figures   the promised figures: how each is read from the results, and its limit
report    results as a table, as JSON, as an HTML page, as pictures
sdk_cost  what the SDKs cost their applications, beside the bare protocol
upload_latency  what uploads of hostile pictures cost the messages of others
upload_process  the users who upload them
hook_latency  what a pre-send hook that fails costs the traffic beside it
hook_process  that hook
in_turns  the table of phases that are measured in turns with a calm one
sdk_client, sdk_bare  programs with clients that are measured
plots     measurements as SVG
"""
