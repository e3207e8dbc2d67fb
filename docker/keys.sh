#!/bin/sh
# Makes passwords and keys for compose.yaml: files in docker/secrets/, and docker/.env with digests and passwords.
# What is there already is kept.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
random() { head -c 32 /dev/urandom | base64 | tr -d '=\n' | tr '+/' '-_'; }
digest() { printf %s "$(cat "secrets/$1")" | sha256sum | cut -d ' ' -f 1; }
for name in orthanc_password postgres_password grafana_password; do
    [ -s "secrets/$name" ] || random >"secrets/$name"
done
for name in orthanc_key operator_key prometheus_key; do
    [ -s "secrets/$name" ] || printf 'mnk_%s' "$(random)" >"secrets/$name"
done
cat >secrets/orthanc.json <<EOF
{
  "RegisteredUsers": {"marrow-node": "$(cat secrets/orthanc_password)"},
  "MarrowNode": {"Url": "http://node-web:8080", "Key": "$(cat secrets/orthanc_key)"}
}
EOF
cat >.env <<EOF
POSTGRES_PASSWORD=$(cat secrets/postgres_password)
ORTHANC_KEY_SHA256=$(digest orthanc_key)
OPERATOR_KEY_SHA256=$(digest operator_key)
PROMETHEUS_KEY_SHA256=$(digest prometheus_key)
EOF
# Containers read these as users of their own.
chmod 644 secrets/orthanc_password secrets/orthanc.json secrets/prometheus_key secrets/grafana_password
chmod 711 secrets
echo "Made. The key to look at the pages with (user: operator) is in docker/secrets/operator_key"
