-- What one agent was asked and what it answered, to be searched. Follows finished runs of nexus.db; all
-- of it can be made again from the ledgers.
CREATE TABLE applied (
  source TEXT PRIMARY KEY,
  seq    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE entries (
  id      INTEGER PRIMARY KEY,
  -- What came in, or what the agent said.
  kind    TEXT NOT NULL CHECK (kind IN ('event', 'turn')),
  -- The event's id, or the turn's.
  source  TEXT NOT NULL,
  -- The turn that it is a part of.
  turn    TEXT NOT NULL,
  -- The label that the session had then; which turns are a session's now, agents.db knows.
  session TEXT NOT NULL,
  channel TEXT NOT NULL,
  -- Whoever wrote the event, also of a turn: it is to whom the agent spoke.
  sender  TEXT NOT NULL,
  at      INTEGER NOT NULL,
  text    TEXT NOT NULL,
  UNIQUE (kind, source)
) STRICT;

-- The words of `entries.text`, which it doesn't hold a second time.
CREATE VIRTUAL TABLE words USING fts5 (
  text,
  content = 'entries',
  content_rowid = 'id',
  tokenize = "unicode61 remove_diacritics 2"
);
