CREATE TABLE pushes (
    user INTEGER NOT NULL,
    channel INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    sender INTEGER NOT NULL,
    message INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    -- When it is due; when it ended, once it has.
    due_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    state INTEGER NOT NULL,
    error TEXT NOT NULL,
    PRIMARY KEY (user, channel, epoch, seq)
) STRICT, WITHOUT ROWID;

CREATE INDEX pushes_due ON pushes (state, due_ms, created_ms);

-- What is due, each kind in its order.
CREATE INDEX pushes_next ON pushes (kind, due_ms) WHERE state = 0;

-- The mentions that wait, of which each user and channel has one.
CREATE INDEX pushes_mentions ON pushes (user, channel) WHERE state = 0 AND kind = 2;

-- The newest push of the kind that stands for a whole absence, unless it was dropped.
CREATE TABLE absences (
    channel INTEGER NOT NULL,
    user INTEGER NOT NULL,
    pushed_ms INTEGER NOT NULL,
    PRIMARY KEY (channel, user)
) STRICT, WITHOUT ROWID;

CREATE TABLE notes (
    name TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
