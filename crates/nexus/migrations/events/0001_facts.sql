-- Facts, never updated: what came in and what went out.
CREATE TABLE events (
  seq          INTEGER PRIMARY KEY,
  -- First 16 bytes of SHA-256 over channel, 0x1f, event_id: a short unique key, whatever the ids look like.
  key          BLOB NOT NULL UNIQUE CHECK (length(key) = 16),
  event_id     TEXT NOT NULL,
  channel      TEXT NOT NULL,
  account_id   TEXT NOT NULL,
  adapter      TEXT NOT NULL,
  direction    TEXT NOT NULL CHECK (direction IN ('inbound', 'outbound')),
  sender_id    TEXT NOT NULL,
  sender_name  TEXT,
  peer_id      TEXT NOT NULL,
  peer_kind    TEXT NOT NULL,
  thread_id    TEXT,
  reply_to_id  TEXT,
  content_type TEXT NOT NULL,
  timestamp    INTEGER NOT NULL,
  received_at  INTEGER NOT NULL,
  -- Decided once, when accepted: run it, run it though it is late, file it for being late, or history.
  disposition  TEXT NOT NULL CHECK (disposition IN ('run', 'late', 'filed', 'history')),
  -- Of a replay: the id of the event that it repeats, of the first one however often it was repeated.
  replay_of    TEXT,
  -- Last, because they may be long: what stands behind them is read only through all of them.
  content      TEXT NOT NULL,
  attachments  TEXT,
  metadata     TEXT
) STRICT;

-- The newest slot of a timer job, found without reading the ledger. Slots are milliseconds of one
-- length, so text order is time order; a replay is no slot.
CREATE INDEX events_timer ON events (event_id) WHERE channel = 'timer' AND replay_of IS NULL;

CREATE INDEX events_replays ON events (replay_of) WHERE replay_of IS NOT NULL;

CREATE TABLE rejected_lines (
  seq         INTEGER PRIMARY KEY,
  adapter     TEXT NOT NULL,
  account     TEXT NOT NULL,
  received_at INTEGER NOT NULL,
  code        TEXT NOT NULL,
  reason      TEXT NOT NULL,
  bytes       INTEGER NOT NULL,
  -- The line's first 4 KiB, as it came.
  head        BLOB NOT NULL
) STRICT;

-- How far each account has come, written with the rows that it covers. History doesn't count; before
-- the first live event a row says since when the account is known.
CREATE TABLE cursors (
  adapter          TEXT NOT NULL,
  account          TEXT NOT NULL,
  last_event_id    TEXT NOT NULL,
  last_timestamp   INTEGER NOT NULL,
  last_received_at INTEGER NOT NULL,
  events           INTEGER NOT NULL,
  -- From here on events may be missing, until a backfill came to its end.
  gap_since        INTEGER,
  PRIMARY KEY (adapter, account)
) STRICT, WITHOUT ROWID;

-- How far each relay's answers to each filter are proven to be whole, in Unix seconds; never an event's own time.
CREATE TABLE relay_cursors (
  relay      TEXT NOT NULL,
  filter     TEXT NOT NULL,
  until      INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (relay, filter)
) STRICT, WITHOUT ROWID;

-- How far this file has followed another.
CREATE TABLE applied (
  source TEXT PRIMARY KEY,
  seq    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
