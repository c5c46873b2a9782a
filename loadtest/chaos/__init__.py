"""Break a deployment on a seeded schedule while people use it, and prove that it kept its promises.

command        `python -m loadtest chaos` and `check`: one run from the first connect to the verdict
cluster        the deployment: processes that can be killed, with a proxy on every link
stores         its Redis: one Valkey, or a primary with replicas and sentinels
shards         the same as a cluster of three shards, whose bus can be cut
clocks         wall clocks that step, one for each process
proxy          a TCP proxy whose links can be cut, held, delayed and forgotten
key_set        an identity provider whose keys rotate and whose endpoint fails
neighbour      a gateway of another deployment on the same Redis server
nemesis        the schedule of faults, and the code that causes them
redis_trouble  faults of a Redis server that keeps running
objects        an object store, SeaweedFS, that can be killed
pictures       people who send pictures and files, and fetch each of them at the end
workload       what people do during a run
moderators     mutes, bans and slow mode during a run
relations      requests, contacts and blocks during a run
people         the same, where applications on the SDKs are the people
apps           those applications as processes, and what each installation has reported
browsers       those applications as tabs of Chromium
client_driver  an application on the Python SDK; in client_driver.mjs and client_node.mjs one on the JavaScript SDK
pages          two people at the web page, in Chromium; page_recorder.js tells what a page shows
device         one device of one user, implemented as the protocol page advises
user_state     the user state of a device, kept by the rules for client authors
proof/         the evidence that a run leaves, and the checker
"""
