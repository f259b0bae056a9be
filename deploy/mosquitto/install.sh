#!/bin/sh
# Makes sure that there is a Mosquitto for the tests: called by `make test`, needs no change.
# Does nothing where one is installed. Never fails on a developer's machine: tests that need it are skipped there.
# With CI=true it fails, since there nothing may be skipped.
set -u

found() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin" command -v mosquitto >/dev/null 2>&1
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

# Debian and Ubuntu start a broker on port 1883 when they install one; this policy of theirs forbids it. A machine that
# has a policy of its own keeps it.
without_starting_it() {
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        "$@"
        return
    fi
    as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy" || return 1
    "$@"
    result=$?
    as_root rm -f "$policy"
    return $result
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mosquitto
}

install() {
    if command -v apt-get >/dev/null 2>&1; then
        without_starting_it apt_install || { as_root apt-get update -qq && without_starting_it apt_install; }
    elif command -v dnf >/dev/null 2>&1; then
        as_root dnf install -y -q mosquitto
    elif command -v apk >/dev/null 2>&1; then
        as_root apk add -q mosquitto
    elif command -v brew >/dev/null 2>&1; then
        brew install --quiet mosquitto
    else
        return 1
    fi
}

found && exit 0
install >/dev/null 2>&1
found && exit 0
echo "mosquitto is not installed and could not be installed: the tests that need it will be skipped"
[ "${CI:-}" != "true" ]
