# Before a server ends: if it is a primary, its replica takes over while both live. A failover needs the votes of most
# primaries; if it began with SIGTERM and those of all shards ended at the same moment, nobody would be left to vote.
set -eu
if [ -r /run/secrets/valkey/password ]; then REDISCLI_AUTH=$(cat /run/secrets/valkey/password); export REDISCLI_AUTH; fi
id=$(valkey-cli cluster myid)
for _ in 1 2 3 4 5; do
  nodes=$(valkey-cli cluster nodes)
  echo "$nodes" | grep myself | grep -q master || exit 0
  replica=$(echo "$nodes" | grep "slave $id .* connected" | grep -v fail | head -n 1 | cut -d' ' -f2 | cut -d, -f2)
  [ -n "$replica" ] || exit 0
  valkey-cli -h "$replica" cluster failover >/dev/null || true
  for _ in 1 2 3 4 5 6; do
    sleep 1
    ! valkey-cli cluster nodes | grep myself | grep -q slave || exit 0
  done
done
