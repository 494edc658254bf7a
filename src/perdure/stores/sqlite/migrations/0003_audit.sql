-- The audit log: the bytes that were hashed, and their leaf hash (RFC 6962). Rows are never changed or removed. run and call
-- repeat what the leaf says, so that the records of an action are found.
CREATE TABLE audit_leaves (
    place INTEGER PRIMARY KEY,
    leaf BLOB NOT NULL,
    hash BLOB NOT NULL,
    run TEXT NOT NULL,
    call INTEGER
) STRICT;
CREATE INDEX audit_of ON audit_leaves (run, call) WHERE run <> '';

-- The hashes of perfect subtrees of 2, 4, 8, ... leaves, so that a proof reads few rows.
CREATE TABLE audit_hashes (
    level INTEGER NOT NULL,
    place INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (level, place)
) STRICT, WITHOUT ROWID;

-- The right edge of the tree: one row, changed with each leaf.
CREATE TABLE audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    size INTEGER NOT NULL,
    edge BLOB NOT NULL
) STRICT;
INSERT INTO audit_head VALUES (1, 0, x'');

-- Signed checkpoints; a cosignature that comes later is added to the note of the same text.
CREATE TABLE audit_checkpoints (
    key INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    body TEXT NOT NULL UNIQUE,
    note TEXT NOT NULL
) STRICT;
CREATE INDEX audit_checkpoints_size ON audit_checkpoints (size);

-- Details beside the log, encrypted under their subject's key. Without the key they are noise, and the log stays whole.
CREATE TABLE audit_sealed (
    place INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX audit_sealed_subject ON audit_sealed (subject) WHERE subject <> '';
CREATE TABLE subject_keys (subject TEXT PRIMARY KEY, wrapped BLOB NOT NULL) STRICT, WITHOUT ROWID;
