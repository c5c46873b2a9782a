# Start one server, and let it meet all others by the name that they share: after a restart of all pods no address is the
# old one.
set -eu
if [ -r /run/secrets/valkey/password ]; then REDISCLI_AUTH=$(cat /run/secrets/valkey/password); export REDISCLI_AUTH; fi
(
  until [ "$(valkey-cli ping 2>/dev/null)" = PONG ]; do sleep 1; done
  while :; do
    for address in $(getent ahosts valkey | cut -d' ' -f1 | sort -u); do
      valkey-cli cluster meet "$address" 6379 >/dev/null || true
    done
    sleep 10
  done
) &
exec valkey-server /etc/valkey/valkey.conf --cluster-announce-hostname "$(hostname).$SERVICE.$NAMESPACE.svc"
