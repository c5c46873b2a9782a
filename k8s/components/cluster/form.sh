# Give the slots to the first server of each shard, and make the second one its replica. A server that has lost its disk
# becomes the replica of the other one. It changes nothing that exists.
set -eu
if [ -r /run/secrets/valkey/password ]; then REDISCLI_AUTH=$(cat /run/secrets/valkey/password); export REDISCLI_AUTH; fi
count=$(echo $SHARDS | wc -w)
at() { server=$1; shift; valkey-cli -h "$server" "$@"; }
known() {  # whether a server has connections to all others; a lost one may still be on its list
  [ "$(at "$1" cluster nodes | grep -v 'fail\|handshake\|noaddr' | grep -c ' connected')" -ge $((2 * count)) ]
}
for shard in $SHARDS; do
  for server in "valkey-$shard-0.valkey-$shard" "valkey-$shard-1.valkey-$shard"; do
    until known "$server"; do sleep 1; done
  done
done
# Of a server, its own line among the nodes: a primary with slots ends with them, and a replica names its flag.
own() { at "$1" cluster nodes | grep myself; }
empty() { ! own "$1" | grep -q 'slave\|connected [0-9]'; }
replicate() { until at "$1" cluster replicate "$(at "$2" cluster myid)" | grep -q OK; do sleep 1; done; }
number=0
for shard in $SHARDS; do
  first="valkey-$shard-0.valkey-$shard" second="valkey-$shard-1.valkey-$shard"
  assigned=$(at "$first" cluster info | tr -d '\r' | grep cluster_slots_assigned: | cut -d: -f2)
  # A shard that was added later gets no slots here: they are moved to it.
  if [ "$assigned" -lt 16384 ] && empty "$first" && empty "$second"; then
    at "$first" cluster addslotsrange $((number * 16384 / count)) $(((number + 1) * 16384 / count - 1))
  fi
  if empty "$second" && ! own "$first" | grep -q slave; then
    replicate "$second" "$first"
  elif empty "$first" && ! own "$second" | grep -q slave; then
    replicate "$first" "$second"
  fi
  number=$((number + 1))
done
until at "$first" cluster info | grep -q cluster_state:ok; do sleep 1; done
