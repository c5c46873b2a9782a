# Give the slots to the first server of each shard, and make the second one its replica. It changes nothing that exists.
set -eu
[ ! -r /run/secrets/valkey/password ] || REDISCLI_AUTH=$(cat /run/secrets/valkey/password)
export REDISCLI_AUTH="${REDISCLI_AUTH:-}"
count=$(echo $SHARDS | wc -w)
at() { server=$1; shift; valkey-cli -h "$server" "$@"; }
known() { at "$1" cluster info | grep -q "cluster_known_nodes:$((2 * count))"; }
for shard in $SHARDS; do
  for server in "valkey-$shard-0.valkey-$shard" "valkey-$shard-1.valkey-$shard"; do
    until known "$server"; do sleep 1; done
  done
done
# Of a server, its own line among the nodes: a primary with slots ends with them, and a replica names its flag.
own() { at "$1" cluster nodes | grep myself; }
empty() { ! own "$1" | grep -q 'slave\|connected [0-9]'; }
number=0
for shard in $SHARDS; do
  first="valkey-$shard-0.valkey-$shard" second="valkey-$shard-1.valkey-$shard"
  assigned=$(at "$first" cluster info | tr -d '\r' | grep cluster_slots_assigned: | cut -d: -f2)
  # A shard that was added later gets no slots here: they are moved to it.
  if [ "$assigned" -lt 16384 ] && empty "$first" && empty "$second"; then
    at "$first" cluster addslotsrange $((number * 16384 / count)) $(((number + 1) * 16384 / count - 1))
  fi
  if empty "$second" && ! own "$first" | grep -q slave; then
    until at "$second" cluster replicate "$(at "$first" cluster myid)" | grep -q OK; do sleep 1; done
  fi
  number=$((number + 1))
done
until at "$first" cluster info | grep -q cluster_state:ok; do sleep 1; done
