#!/bin/sh
# Makes sure that there is a PostgreSQL server for the tests: called by `make test`, needs no change.
# Does nothing where one is installed. Never fails on a developer's machine: tests that need it are skipped there.
# With CI=true it fails, since there nothing may be skipped.
set -u

found() {
    command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb 2>/dev/null | grep -q .
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo -n "$@"
    else
        return 1
    fi
}

# Debian and Ubuntu make a cluster and start it when they install the server, unless this says otherwise. The tests
# make their own. A machine that has such a file keeps its own.
without_a_cluster() {
    config=/etc/postgresql-common/createcluster.conf
    if [ ! -e "$config" ]; then
        as_root sh -c "mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >$config" || return 1
    fi
    "$@"
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Options::=--force-confold postgresql
}

install() {
    if command -v apt-get >/dev/null 2>&1; then
        without_a_cluster apt_install || { as_root apt-get update -qq && without_a_cluster apt_install; }
    elif command -v dnf >/dev/null 2>&1; then
        as_root dnf install -y -q postgresql-server
    elif command -v apk >/dev/null 2>&1; then
        as_root apk add -q postgresql
    elif command -v brew >/dev/null 2>&1; then
        brew install --quiet postgresql
    else
        return 1
    fi
}

found && exit 0
install >/dev/null 2>&1
found && exit 0
echo "PostgreSQL is not installed and could not be installed: the tests that need it will be skipped"
[ "${CI:-}" != "true" ]
