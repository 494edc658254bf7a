-- Runs: one row each. The journal tells what happened; the row tells who may go on with it, and when.
CREATE TABLE runs (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    agent TEXT NOT NULL,
    status TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    session TEXT,
    idempotency_key TEXT,
    parent TEXT,
    priority INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    claimed_seq INTEGER NOT NULL DEFAULT 0,
    recoveries INTEGER NOT NULL DEFAULT 0,
    ready_ms INTEGER NOT NULL DEFAULT 0,
    wake_ms INTEGER,
    deadline_ms INTEGER,
    cancel_reason TEXT,
    cancel_code TEXT,
    code TEXT,
    ended_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX runs_idempotency ON runs (agent, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_queue ON runs (priority DESC, ready_ms, key) WHERE status = 'queued';
CREATE INDEX runs_wake ON runs (wake_ms) WHERE status = 'waiting' AND wake_ms IS NOT NULL;
CREATE INDEX runs_running ON runs (worker) WHERE status = 'running';
CREATE INDEX runs_session ON runs (agent, session, key)
    WHERE session IS NOT NULL AND status NOT IN ('completed', 'failed', 'cancelled');
CREATE INDEX runs_parent ON runs (parent, key) WHERE parent IS NOT NULL;

-- Journals. crc is CRC-32 of body: SQLite itself does not notice a flipped byte in a value.
CREATE TABLE journal (
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE blobs (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE workers (id TEXT PRIMARY KEY, lease_until_ms INTEGER NOT NULL) STRICT;

CREATE TABLE mail (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    topic TEXT NOT NULL,
    body BLOB NOT NULL,
    sender TEXT NOT NULL,
    sent_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX mail_box ON mail (run, topic, id);
CREATE TABLE mail_keys (run INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (run, key)) STRICT, WITHOUT ROWID;

CREATE TABLE questions (
    run TEXT NOT NULL,
    call INTEGER NOT NULL,
    agent TEXT NOT NULL,
    question BLOB NOT NULL,
    asked_ms INTEGER NOT NULL,
    due_ms INTEGER,
    PRIMARY KEY (run, call)
) STRICT, WITHOUT ROWID;

CREATE TABLE session_state (
    agent TEXT NOT NULL,
    session TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (agent, session, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE schedules (
    name TEXT PRIMARY KEY,
    agent TEXT NOT NULL,
    cron TEXT NOT NULL,
    timezone TEXT NOT NULL,
    input BLOB NOT NULL,
    next_ms INTEGER NOT NULL
) STRICT;
