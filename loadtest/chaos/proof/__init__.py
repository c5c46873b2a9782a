"""The evidence that a chaos run leaves, and the proof that every promise was kept. Nothing here needs a deployment.

history    what one device did and received, row by row, on disk
evidence   everything that a run leaves in its folder
checker    proves or refutes the promises from the evidence
account    the part of the checker that judges one device
states     the part that judges user state
restraints the part that judges mutes, bans and slow mode
relations  the part that judges contacts and blocks
hook       the part that judges the pre-send hook
files      the part that judges files of messages
trimmed    the part that judges events which the logs no longer contain
findings   logs, violations and counts, shared by the parts of the checker
client_history the same of an application on an SDK
clients    the part of the checker that judges those applications
page_history what a person did at the web page, and what the page showed
pages      the part of the checker that judges those pages
story      the shortest explanation of a violation
effects    the effects of each kind of fault on people
"""
