-- What the living pods of a tenant may take together, as JSON; empty: no bound.
ALTER TABLE tenants ADD COLUMN quota TEXT NOT NULL DEFAULT '';
