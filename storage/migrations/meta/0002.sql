-- Accounts: what proves who somebody is. Rare writes of people's own doing, never beside a message.
ALTER TABLE users ADD COLUMN tokens_from_s INTEGER NOT NULL DEFAULT 0;

CREATE TABLE passwords (
    user INTEGER PRIMARY KEY,
    hash TEXT NOT NULL,
    changed_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE logins (
    login INTEGER PRIMARY KEY,
    user INTEGER NOT NULL,
    device INTEGER NOT NULL,
    secret BLOB NOT NULL,
    before BLOB NOT NULL,
    rotated_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX logins_device ON logins (user, device);
