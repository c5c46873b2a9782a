# Whether a server answers and, if it is a replica, is in sync with its primary.
set -eu
if [ -r /run/secrets/valkey/password ]; then REDISCLI_AUTH=$(cat /run/secrets/valkey/password); export REDISCLI_AUTH; fi
[ "$(valkey-cli ping)" = PONG ]
valkey-cli info replication | grep -q '^role:master\|^master_link_status:up'
