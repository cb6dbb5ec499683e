-- Rights beyond roles. Rows follow entries of the channel in the entry's own transaction.
ALTER TABLE channels ADD COLUMN posting INTEGER NOT NULL DEFAULT 1;

-- What stands against, or for, a user in a channel: muted, banned, invited, asked to join.
CREATE TABLE marks (
    channel INTEGER NOT NULL,
    user INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (channel, user, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX marks_user ON marks (user, channel);

-- Where somebody is and was, for an export and for reconcile.
CREATE INDEX members_user ON members (user, channel);

-- From whom a user takes no direct messages.
CREATE TABLE blocks (
    user INTEGER NOT NULL,
    blocked INTEGER NOT NULL,
    PRIMARY KEY (user, blocked)
) STRICT, WITHOUT ROWID;
