#!/bin/sh
# Shows that the same source and the same Go give the same bytes: builds all executables here and from a copy in another folder, and
# compares. The standard library's packages come from the same cache both times; the agent's own are compiled anew.
# Usage: reproducible.sh [GO]
set -eu

agent=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/another place/and deeper"
cp -R "$agent" "$work/another place/and deeper/agent"
rm -rf "$work/another place/and deeper/agent/dist"
cp "$agent/../galaxy.yml" "$work/another place/and deeper/" 2>/dev/null || true

path=$(${1:-go} env GOPATH)
cache=$(${1:-go} env GOCACHE)
"$agent/build.sh" "$work/one" "$@"
(cd / && HOME=$work GOPATH=$path GOCACHE=$cache "$work/another place/and deeper/agent/build.sh" "$work/two" "$@")

(cd "$work/one" && sha256sum ./*) > "$work/sums"
(cd "$work/two" && sha256sum -c "$work/sums")
chmod -R u+w "$work"
