#!/usr/bin/env bash
# The Autobahn WebSocket suite against the gateway's WebSocket layer (tests/gateway/websocket/echo.py): `make conformance`.
#
# 247 cases in about 12 s; with FULL=1 all 517, compression and large messages too, in about 15 minutes.
# AUTOBAHN_SUITE  folder with the suite's run.sh (default: ../shared/autobahn beside the checkout)
# CASES           another choice of cases, as a JSON list
# The summary is printed and stays, with the suite's own reports, in .linnet/conformance/.
# Exit: 0 no case failed, 1 some failed, 2 the endpoint is not there, 3 some cases have no result, 77 left out: there is
# no suite.
set -euo pipefail

cd "$(dirname "$0")/../../.."
suite=${AUTOBAHN_SUITE:-../shared/autobahn}
out=.linnet/conformance
python=.venv/bin/python

[ -x "$suite/run.sh" ] || { echo "conformance: no Autobahn suite in $suite; set AUTOBAHN_SUITE" >&2; exit 77; }
mkdir -p "$out"
if [ -n "${FULL:-}" ]; then
  unset CASES QUICK
else
  export CASES=${CASES:-'["1.*","2.*","3.*","4.*","5.*","6.*","7.*","10.*"]'}
fi

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$python" -m tests.gateway.websocket.echo "$port" >"$out/echo.log" 2>&1 &
echo_pid=$!
trap 'kill $echo_pid 2>/dev/null || true; wait $echo_pid 2>/dev/null || true' EXIT

for _ in $(seq 100); do
  kill -0 "$echo_pid" 2>/dev/null || { cat "$out/echo.log" >&2; exit 2; }
  (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
  sleep 0.1
done

"$suite/run.sh" "ws://127.0.0.1:$port/" "$out" linnet | tee "$out/summary.txt"
