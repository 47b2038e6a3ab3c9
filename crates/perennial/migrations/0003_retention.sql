-- Since version 3 a pod's documents may say when snapshots are taken and which are kept; one that says nothing has no
-- schedule and forgets nothing, as before.

-- When a tenant's repository was cleaned up last, and when something was forgotten in it: what is due after a restart.
CREATE TABLE prunes (
    tenant TEXT PRIMARY KEY,
    wanted_at TEXT NOT NULL,
    began_at TEXT NOT NULL
);

CREATE INDEX operations_of_snapshots ON operations (snapshot) WHERE state IN ('pending', 'running');
