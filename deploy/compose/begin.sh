#!/bin/sh
# Create the join token of the agent and the token of Prometheus, once.
set -eu
if [ ! -s /shared/join ]; then
    novacron node join-token --node node-1 --accept --file /shared/join
fi
if [ ! -s /shared/novacron.token ]; then
    novacron token create prometheus --scope read | tr -d '\n' > /shared/.token
    mv /shared/.token /shared/novacron.token
fi
cp /state/server/ca.crt /shared/novacron-ca.crt
chmod 0644 /shared/novacron.token /shared/novacron-ca.crt
