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

-- The newest push of the kind that stands for a whole absence.
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
