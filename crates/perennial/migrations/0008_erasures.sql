-- Tenants that were erased, or are being erased. A row stays for good: the name is not used again.
CREATE TABLE erasures (
    tenant TEXT PRIMARY KEY,
    -- What its progress is shown under.
    id TEXT NOT NULL,
    actor TEXT NOT NULL,
    asked_at TEXT NOT NULL,
    -- 1 when the files of the repositories are deleted as well.
    delete_data BIGINT NOT NULL,
    -- What was found in the repository and its replica when it was asked for, what became of it, and what each server did
    -- with its keys: a JSON document.
    found TEXT NOT NULL,
    -- When the keys were destroyed, and when everything was done; empty: not yet.
    keys_at TEXT NOT NULL,
    done_at TEXT NOT NULL,
    -- Why a place is not dealt with yet, as it was tried last; empty when nothing is wrong.
    problem TEXT NOT NULL
);
