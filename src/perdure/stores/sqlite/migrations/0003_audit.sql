-- The audit log: leaves in their order, and the hashes of the complete subtrees over them (RFC 6962).
CREATE TABLE audit (
    place INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    call INTEGER NOT NULL,
    leaf BLOB NOT NULL
) STRICT;
CREATE INDEX audit_of ON audit (run, call) WHERE run <> '';
CREATE TABLE audit_nodes (
    level INTEGER NOT NULL,
    place INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (level, place)
) STRICT, WITHOUT ROWID;

-- Encrypted details, and the key of each subject, itself encrypted with the master key of the data directory.
CREATE TABLE audit_sealed (
    place INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE TABLE audit_subjects (
    subject TEXT PRIMARY KEY,
    key BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Signed heads.
CREATE TABLE audit_checkpoints (
    size INTEGER PRIMARY KEY,
    note TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;
