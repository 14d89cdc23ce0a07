#!/bin/sh
# Make the keys that docker-compose.yml reads from ./secrets. Keys that are there already stay as they are.
#   sh service/deploy/make_secrets.sh
# The folder is private; the files in it can be read by the users of the containers, which get them one by one.
set -eu
umask 022
mkdir -p secrets
chmod 700 secrets

random_key() {
    od -An -N 24 -tx1 /dev/urandom | tr -d ' \n'
    echo
}

for name in hub_token metrics_key grafana_password; do
    [ -s "secrets/$name" ] || random_key > "secrets/$name"
done
# One key a line: the first for clients, the second for Prometheus.
[ -s secrets/api_keys ] || random_key > secrets/api_keys
grep -qFf secrets/metrics_key secrets/api_keys || {
    # The last line of a file that was written by hand may not end in a newline.
    [ -z "$(tail -c 1 secrets/api_keys)" ] || echo >> secrets/api_keys
    cat secrets/metrics_key >> secrets/api_keys
}
# The users of the containers read what is mounted from here, which a checkout with a umask of 077 hides from them.
deploy=$(dirname "$0")
chmod -R a+rX "$deploy/nginx" "$deploy/prometheus" "$deploy/grafana"
