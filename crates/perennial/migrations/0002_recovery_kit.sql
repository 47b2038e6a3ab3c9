-- Which keys were exported in a recovery kit: the newest time for each tenant. The fingerprint tells when a tenant's
-- repository was begun anew with another key; it says nothing about the key.
CREATE TABLE recovery_exports (
    tenant TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    actor TEXT NOT NULL,
    at TEXT NOT NULL
);
