-- The replica of each tenant's repository. Since version 6 a snapshot's document may say when it was proven to be there.
CREATE TABLE replicas (
    tenant TEXT PRIMARY KEY,
    -- The id that the replica itself carries: what is recorded of another one says nothing of this. Empty: never opened.
    replica TEXT NOT NULL,
    -- Which server is at work on it, and until when no other begins.
    holder TEXT NOT NULL,
    busy_until TEXT NOT NULL,
    -- When everything was looked at to the end last, and when it was pruned; empty: never.
    looked_at TEXT NOT NULL,
    pruned_at TEXT NOT NULL,
    -- Why the last turn did not get to its end; empty when it did.
    problem TEXT NOT NULL
);

-- What became of each thing that was to be copied. `copy` is what it is called in the replica; empty: it could not be copied.
-- `gone_at` is empty as long as its original was not deleted.
CREATE TABLE replicated (
    tenant TEXT NOT NULL,
    replica TEXT NOT NULL,
    original TEXT NOT NULL,
    part TEXT NOT NULL,
    name TEXT NOT NULL,
    copy TEXT NOT NULL,
    at TEXT NOT NULL,
    problem TEXT NOT NULL,
    gone_at TEXT NOT NULL,
    PRIMARY KEY (tenant, replica, original)
);
-- What is missing is looked for by name, once for each snapshot.
CREATE INDEX replicated_by_name ON replicated (tenant, replica, name);

-- Which keys of replicas are in a recovery kit that somebody exported.
CREATE TABLE replica_exports (
    tenant TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    actor TEXT NOT NULL,
    at TEXT NOT NULL
);
