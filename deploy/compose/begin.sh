#!/bin/sh
# Create the join token of the agent, once, and a new token of Prometheus at each start: it ends after a year.
set -eu
if [ ! -s /join/token ]; then
    novacron node join-token --node node-1 --accept --file /join/token
fi
novacron token create prometheus --scope metrics --days 366 | tr -d '\n' > /shared/.token
chmod 0644 /shared/.token
mv /shared/.token /shared/novacron.token
cp /state/server/ca.crt /shared/novacron-ca.crt
chmod 0644 /shared/novacron-ca.crt
