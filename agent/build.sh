#!/bin/sh
# Builds the agent's four executables: build.sh [OUTDIR [GO]]. The same source gives the same bytes, wherever it lies.
set -eu

agent=$(cd "$(dirname "$0")" && pwd)
out=${1:-$agent/dist}
go=${2:-go}
version=$(sed -n "s/^version:[[:space:]]*['\"]\{0,1\}\([^'\"[:space:]]*\).*/\1/p" "$agent/../galaxy.yml" 2>/dev/null || true)

mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$agent"

# The environment of who builds must not show in the result.
unset GOFLAGS GOEXPERIMENT GODEBUG GOARM64 GOAMD64 || true
export CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=local

for system in windows linux; do
    for architecture in amd64 arm64; do
        suffix=
        [ "$system" = windows ] && suffix=.exe
        # nethttpomithttp2: both ends speak HTTP/1.1, and HTTP/2 would be 400 KB of attack surface.
        # -gcflags crypto/...=-l: without inlining there it is 300 KB less to upload; what must be fast in it is assembly.
        GOOS=$system GOARCH=$architecture "$go" build -trimpath -buildvcs=false -tags nethttpomithttp2 \
            -gcflags 'crypto/...=-l' -ldflags "-s -w -buildid= -X main.version=${version:-0.0.0}" \
            -o "$out/sojourn-agent-$system-$architecture$suffix" .
    done
done
