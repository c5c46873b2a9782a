"""Put a deployment under load and measure what that costs.

conductor   starts the load processes, synchronizes them at barriers, reads the meters there, gathers the results
process     the main function of a load process
worker      what a scenario uses in a load process: clients, pacing, barriers, measured phases
client      one device of one user, cheap enough that one process runs thousands; verifies every event that it receives
ticks       ticks more precise than the timers of an event loop
results     measurements, their medians, and whether a run was good
local       a deployment that exists for one test
primaries   its cluster of some primaries, if Redis is to be one
floor       a bare protocol that writes prebuilt frames: the lower bound for any server's cost
scenarios/  what the users do, one file each
"""
