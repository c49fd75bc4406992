#!/bin/sh
# Tests a hello program: the one given, or the one installed beside this script. Exits 0 if all tests pass.
set -u

hello=${1:-$(dirname "$0")/../../bin/hello}
number=0
failed=0

# check STATUS PATTERN [ARGUMENT...]: run the program with the arguments, compare how it ends and what it says.
check() {
    status=$1
    pattern=$2
    shift 2
    output=$("$hello" "$@" 2>&1)
    got=$?
    number=$((number + 1))
    # shellcheck disable=SC2254 # it is a pattern
    case "$got $output" in
        "$status "$pattern)
            echo "ok $number - hello $*"
            ;;
        *)
            failed=$((failed + 1))
            echo "not ok $number - hello $*"
            echo "# expected $status: $pattern"
            echo "#      got $got: $output"
            ;;
    esac
}

check 0 "Hello, world!"
check 0 "Hello, Debian!" Debian
check 0 "Hello, a b!
Hello, c!" "a b" c
check 0 "Hello, !" ""
check 2 "hello: unknown option '-x'
usage: hello ?--version? ?NAME...?" -x
check 0 "hello [0-9]*.[0-9]*" --version

echo "1..$number"
[ "$failed" = 0 ] || echo "# $failed failed" >&2
[ "$failed" = 0 ]
