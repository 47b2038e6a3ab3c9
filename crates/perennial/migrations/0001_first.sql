-- The first schema. TEXT and BIGINT only, so that the same statements run on SQLite and on Postgres.
-- Times are RFC 3339 UTC with nine digits after the second: they sort as text. Ids sort by creation time.

CREATE TABLE installation (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL
);

-- Numbers that grow by one commit at a time. The event number is taken inside the transaction that writes the event,
-- so that whoever has seen event n can never miss an earlier one that is committed later.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('event', 0);

CREATE TABLE pods (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    desired TEXT NOT NULL,
    phase TEXT NOT NULL,
    -- 1 for archived and deleted pods, which leave their name to others.
    hidden BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    purge_at TEXT,
    -- The snapshot that the pod's data has to come from.
    source_snapshot TEXT,
    spec TEXT NOT NULL,
    state TEXT NOT NULL
);
CREATE UNIQUE INDEX pods_name ON pods (tenant, name) WHERE hidden = 0;
CREATE INDEX pods_tenant ON pods (tenant, id);
CREATE INDEX pods_purge ON pods (purge_at) WHERE purge_at IS NOT NULL;
CREATE INDEX pods_source ON pods (source_snapshot) WHERE source_snapshot IS NOT NULL;

CREATE TABLE leases (
    pod TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    expires_at TEXT NOT NULL
);

CREATE TABLE snapshots (
    id TEXT PRIMARY KEY,
    pod TEXT NOT NULL REFERENCES pods (id),
    tenant TEXT NOT NULL,
    state TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX snapshots_pod ON snapshots (pod, id);
CREATE INDEX snapshots_tenant ON snapshots (tenant, id);

-- Operations and events outlive the pod they are about.
CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    pod TEXT NOT NULL,
    state TEXT NOT NULL,
    snapshot TEXT,
    body TEXT NOT NULL
);
CREATE INDEX operations_pod ON operations (pod, id);
CREATE INDEX operations_open ON operations (pod) WHERE state IN ('pending', 'running');

CREATE TABLE events (
    id BIGINT PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    tenant TEXT NOT NULL,
    pod TEXT,
    operation TEXT,
    kind TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX events_pod ON events (pod, id);
CREATE INDEX events_tenant ON events (tenant, id);

-- Images that are whole in a tenant's repository.
CREATE TABLE images (
    tenant TEXT NOT NULL,
    image TEXT NOT NULL,
    repository_id TEXT NOT NULL,
    stored_at TEXT NOT NULL,
    PRIMARY KEY (tenant, image)
);

CREATE TABLE idempotency (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    status BIGINT NOT NULL,
    body TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (tenant, key)
);
