-- Public keys of approvers. The runtime never holds a private one.
CREATE TABLE approver_keys (
    kid TEXT PRIMARY KEY,
    person TEXT NOT NULL,
    roles TEXT NOT NULL,
    kind TEXT NOT NULL,
    jwk TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER,
    sign_count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Signed decisions. The primary key and used_ms together make a grant good for one release.
CREATE TABLE grants (
    jti TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    call INTEGER NOT NULL,
    token TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    used_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_of ON grants (run, call);

-- What this data directory is called and goes by: its id as the audience of grants, the policies that were last in force.
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What is contained now; moves are in the audit log.
CREATE TABLE containments (
    scope TEXT PRIMARY KEY,
    level TEXT NOT NULL,
    by TEXT NOT NULL,
    reason TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    until_ms INTEGER
) STRICT, WITHOUT ROWID;

-- The action (run/call) that this one undoes.
ALTER TABLE actions ADD COLUMN undoes TEXT NOT NULL DEFAULT '';
CREATE INDEX actions_undoing ON actions (undoes) WHERE undoes <> '';
