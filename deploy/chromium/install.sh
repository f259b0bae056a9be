#!/bin/sh
# Makes sure that there is a Chromium for the tests of Prefect's page: called by `make test`, needs no change.
# Does nothing where one is installed. Never fails on a developer's machine: tests that need it are skipped there.
# With CI=true it fails, since there nothing may be skipped.
set -u

found() {
    command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1
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

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
}

install() {
    if command -v apt-get >/dev/null 2>&1; then
        apt_install || { as_root apt-get update -qq && apt_install; }
    elif command -v dnf >/dev/null 2>&1; then
        as_root dnf install -y -q chromium
    elif command -v apk >/dev/null 2>&1; then
        as_root apk add -q chromium
    else
        return 1
    fi
}

found && exit 0
install >/dev/null 2>&1
found && exit 0
echo "Chromium is not installed and could not be installed: the tests that need it will be skipped"
[ "${CI:-}" != "true" ]
