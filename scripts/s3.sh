#!/usr/bin/env bash
# A throw-away S3 service for tests (s3s-fs): a free port of 127.0.0.1, objects as files, gone when it is stopped.
#
#   s3.sh start DIR      starts one on DIR (which must not exist or be empty) with a bucket, prints s3:URL/BUCKET
#   s3.sh kill DIR       kills it without warning; what it holds stays
#   s3.sh restart DIR    starts it again, on the same port
#   s3.sh stop DIR       stops it and deletes DIR
#
# The credentials are in s3.sh itself: AWS_ACCESS_KEY_ID=perennial AWS_SECRET_ACCESS_KEY=perennial-secret.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/service.sh"

[ $# = 2 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
dir=$(realpath -m "$2")
program=$DEV_DIR/tools/bin/s3s-fs
[ -x "$program" ] || die "$program is missing" "run ./dev deps"

command_line() { argv=("$program" --host 127.0.0.1 --port "$1" --access-key perennial --secret-key perennial-secret "$dir/data"); }

ending=KILL

prepare() { mkdir -p "$dir/data/bucket"; }

announce() { echo "s3:http://127.0.0.1:$1/bucket"; }

service "$1"
