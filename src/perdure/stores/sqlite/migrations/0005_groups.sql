-- Actions that a group grant has released beside the one that it was signed for. Counted in the transaction of the intent.
CREATE TABLE grant_uses (
    jti TEXT NOT NULL,
    run INTEGER NOT NULL,
    call INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (jti, run, call)
) STRICT, WITHOUT ROWID;
