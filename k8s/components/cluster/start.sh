# Start one server, and let it meet all others by their names: after a restart of all pods no address is the old one.
set -eu
[ ! -r /run/secrets/valkey/password ] || REDISCLI_AUTH=$(cat /run/secrets/valkey/password)
export REDISCLI_AUTH="${REDISCLI_AUTH:-}"
(
  until [ "$(valkey-cli ping 2>/dev/null)" = PONG ]; do sleep 1; done
  while :; do
    for server in $SERVERS; do
      address=$(getent hosts "$server" | cut -d' ' -f1) || continue
      valkey-cli cluster meet "$address" 6379 >/dev/null || true
    done
    sleep 30
  done
) &
exec valkey-server /etc/valkey/valkey.conf --cluster-announce-hostname "$(hostname).$SERVICE.$NAMESPACE.svc"
