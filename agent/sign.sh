#!/bin/sh
# Signs the agent's executables for Windows (Authenticode): sign.sh OUTDIR OPTION..., the options as `osslsigncode sign` takes them, such as
# -pkcs12 FILE -readpass FILE -ts URL.
set -eu

out=$1
shift
for option; do
    if [ "$option" = -pass ]; then
        echo "sign.sh: -pass shows the password to every user of this machine; use -readpass FILE" >&2
        exit 2
    fi
done
for executable in "$out"/*.exe; do
    rm -f "$executable.signed"
    osslsigncode sign -h sha256 -n "sojourn.deploy agent" "$@" -in "$executable" -out "$executable.signed" >/dev/null
    mv "$executable.signed" "$executable"
done
