-- The action ledger: one row for each governed use of a tool or model. Request and result are in the journal, at
-- intent_seq and end_seq. The four digests are the identity of a call of a hosted program (empty for native agents).
CREATE TABLE actions (
    run INTEGER NOT NULL,
    call INTEGER NOT NULL,
    what TEXT NOT NULL,
    name TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    state TEXT NOT NULL,
    recovery TEXT NOT NULL,
    effect TEXT NOT NULL,
    exact TEXT NOT NULL,
    masked TEXT NOT NULL,
    causal TEXT NOT NULL,
    ordinal TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    intended_ms INTEGER NOT NULL,
    intent_seq INTEGER NOT NULL,
    ended_ms INTEGER,
    end_seq INTEGER,
    reserved TEXT NOT NULL,
    spent TEXT NOT NULL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    upstream TEXT NOT NULL,
    code TEXT NOT NULL,
    PRIMARY KEY (run, call)
) STRICT, WITHOUT ROWID;
CREATE INDEX actions_open ON actions (state, intended_ms) WHERE state IN ('held', 'intended', 'unknown');
CREATE INDEX actions_recent ON actions (intended_ms);

-- Which row answered which attempt of a hosted program, and how surely it was recognised.
CREATE TABLE served (
    run INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    call INTEGER NOT NULL,
    level TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (run, attempt, call, at_ms)
) STRICT, WITHOUT ROWID;

-- What each run and everything below it has reserved and spent, and its budget if it has one.
CREATE TABLE accounts (
    run INTEGER PRIMARY KEY,
    budget TEXT,
    reserved_tokens INTEGER NOT NULL DEFAULT 0,
    reserved_usd_micros INTEGER NOT NULL DEFAULT 0,
    reserved_calls INTEGER NOT NULL DEFAULT 0,
    reserved_unpriced INTEGER NOT NULL DEFAULT 0,
    spent_tokens INTEGER NOT NULL DEFAULT 0,
    spent_usd_micros INTEGER NOT NULL DEFAULT 0,
    spent_calls INTEGER NOT NULL DEFAULT 0,
    spent_unpriced INTEGER NOT NULL DEFAULT 0
) STRICT;
