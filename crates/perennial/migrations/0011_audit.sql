-- Every change with who made it, and what it changed: rows are added, and never changed or deleted. The hash of each is over the hash
-- of the one before, its number and its fields (src/audit.rs).
CREATE TABLE audit (
    number BIGINT PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    tenant TEXT,
    pod TEXT,
    operation TEXT,
    request TEXT,
    action TEXT NOT NULL,
    message TEXT NOT NULL,
    before TEXT,
    after TEXT,
    result TEXT NOT NULL,
    code TEXT,
    hash TEXT NOT NULL
);
CREATE INDEX audit_pod ON audit (pod, number);
CREATE INDEX audit_tenant ON audit (tenant, number);

-- The hash of the newest row, beside its number: a tail that is cut off is missed. Empty before the first row.
ALTER TABLE counters ADD COLUMN hash TEXT NOT NULL DEFAULT '';
INSERT INTO counters (name, value) VALUES ('audit', 0);
