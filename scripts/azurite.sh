#!/usr/bin/env bash
# A throw-away Azure Blob service for tests (Azurite): a free port of 127.0.0.1, gone when it is stopped.
#
#   azurite.sh start DIR      starts one on DIR (which must not exist or be empty) with a container, prints its endpoint
#   azurite.sh kill DIR       ends it in the middle of what it does; what it holds stays
#   azurite.sh restart DIR    starts it again, on the same port
#   azurite.sh stop DIR       stops it and deletes DIR
#
# The account is the well-known one of every Azurite, devstoreaccount1; the container is called "container".
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/service.sh"

[ $# = 2 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
dir=$(realpath -m "$2")
program=$DEV_DIR/tools/azurite/node_modules/azurite/dist/src/blob/main.js
[ -e "$program" ] || die "$program is missing" "run ./dev deps"

command_line() {
    argv=(node "$program" --silent --skipApiVersionCheck --disableTelemetry
        --blobHost 127.0.0.1 --blobPort "$1" --location "$dir/data")
}

# It answers before it has written anything down: after a SIGKILL, seconds of what it confirmed would be missing.
ending=TERM

prepare() { mkdir -p "$dir/data"; }

# There is no program to make a container with, so the request is signed here.
make_container() {
    node - "$1" <<'JS'
const http = require("http"), crypto = require("crypto");
const account = "devstoreaccount1";
const key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const headers = { "x-ms-date": new Date().toUTCString(), "x-ms-version": "2021-08-06" };
const resource = `/${account}/${account}/container\nrestype:container`;
const named = Object.entries(headers).map(([name, value]) => `${name}:${value}\n`).join("");
const signature = crypto.createHmac("sha256", Buffer.from(key, "base64"))
    .update(`PUT${"\n".repeat(12)}${named}${resource}`).digest("base64");
const request = http.request({
    host: "127.0.0.1", port: process.argv[2], path: `/${account}/container?restype=container`, method: "PUT",
    headers: { ...headers, authorization: `SharedKey ${account}:${signature}`, "content-length": 0 },
}, (answer) => { answer.resume(); process.exitCode = answer.statusCode === 201 ? 0 : 1; });
request.on("error", (error) => { console.error(error.message); process.exitCode = 1; });
request.end();
JS
}

announce() {
    [ -e "$dir/made" ] || { make_container "$1" && touch "$dir/made"; } || die "no container could be made"
    echo "http://127.0.0.1:$1/devstoreaccount1"
}

service "$1"
