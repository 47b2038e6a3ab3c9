-- Addresses are in lower case from here on; where two of them would be the same, both stay as they are.
UPDATE users SET email = LOWER(email) WHERE email <> '' AND NOT EXISTS (
    SELECT 1 FROM users other WHERE other.name <> users.name AND LOWER(other.email) = LOWER(users.email)
);

-- Who a user is to the OpenID provider: its address, a space, and what it calls them. Empty: nobody yet.
ALTER TABLE users ADD COLUMN identity TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX users_identity ON users (identity) WHERE identity <> '';
