-- Tenants, users, memberships and tokens. An empty text is "none" and "not yet" throughout.

-- The tenants there are. One that is erased has a row in `erasures` instead, for good.
CREATE TABLE tenants (
    name TEXT PRIMARY KEY,
    created_at TEXT NOT NULL
);
-- Those that have something already. An installation that has nothing yet gets its first one when it is opened.
INSERT INTO tenants (name, created_at)
    SELECT found.tenant, MIN(found.at) FROM (
        SELECT tenant, created_at AS at FROM pods
        UNION ALL SELECT tenant, stored_at AS at FROM images
        UNION ALL SELECT tenant, at FROM recovery_exports
        UNION ALL SELECT tenant, at FROM events WHERE pod IS NOT NULL
    ) found
    WHERE found.tenant NOT IN (SELECT tenant FROM erasures)
    GROUP BY found.tenant;

-- A row stays when its user is removed: the audit trail names people, so that a name is not given to somebody else.
CREATE TABLE users (
    name TEXT PRIMARY KEY,
    email TEXT NOT NULL,
    role TEXT NOT NULL,
    -- A hash in PHC string format.
    password TEXT NOT NULL,
    disabled BIGINT NOT NULL,
    created_at TEXT NOT NULL,
    removed_at TEXT NOT NULL
);
CREATE UNIQUE INDEX users_email ON users (email) WHERE email <> '';

CREATE TABLE memberships (
    user_name TEXT NOT NULL REFERENCES users (name),
    tenant TEXT NOT NULL REFERENCES tenants (name),
    since TEXT NOT NULL,
    PRIMARY KEY (user_name, tenant)
);
CREATE INDEX memberships_tenant ON memberships (tenant);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    user_name TEXT NOT NULL REFERENCES users (name),
    label TEXT NOT NULL,
    -- SHA-256 of the whole token, hexadecimal.
    hash TEXT NOT NULL UNIQUE,
    -- Names with commas between them.
    scopes TEXT NOT NULL,
    tenant TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    last_used_at TEXT NOT NULL,
    revoked_at TEXT NOT NULL
);
CREATE INDEX tokens_user ON tokens (user_name, id);
CREATE INDEX tokens_tenant ON tokens (tenant) WHERE tenant <> '';

-- Grows with every change of rights, in its transaction: by this, servers that share a database learn of each other's.
INSERT INTO counters (name, value) VALUES ('access', 0);

-- `tenant` is who asked from now on: the tenant of the administrator's token as before, `user:NAME` for everybody else. This is
-- the tenant of what was answered, which they must still be able to see to get the answer again.
ALTER TABLE idempotency ADD COLUMN about TEXT NOT NULL DEFAULT '';
