-- Follows finished runs of nexus.db, by finish_seq.
CREATE TABLE applied (
  source TEXT PRIMARY KEY,
  seq    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A tree: each turn names the turn that it answered after.
CREATE TABLE turns (
  turn_id        TEXT PRIMARY KEY,
  parent_turn_id TEXT,
  depth          INTEGER NOT NULL,
  session        TEXT NOT NULL,
  agent          TEXT NOT NULL,
  request_id     TEXT NOT NULL,
  model          TEXT,
  provider       TEXT,
  stop_reason    TEXT NOT NULL,
  input_tokens   INTEGER,
  output_tokens  INTEGER,
  started_at     INTEGER NOT NULL,
  duration_ms    REAL NOT NULL,
  -- The agent whose budget it counts for: the one that was asked last, where others took its place.
  charged        TEXT NOT NULL,
  cost_usd       REAL
) STRICT;

-- What a day has used.
CREATE INDEX turns_by_charge ON turns (charged, started_at);
-- Which agents there are turns of, configured or not.
CREATE INDEX turns_by_agent ON turns (agent);

-- What a turn and those that lead to it have used together, by the agents that they count for: what a session has used,
-- by its head. A fork goes on from the sums of its turn, and what begins anew has none.
CREATE TABLE line_use (
  turn_id TEXT NOT NULL,
  charged TEXT NOT NULL,
  tokens  INTEGER NOT NULL,
  usd     REAL NOT NULL,
  PRIMARY KEY (turn_id, charged)
) STRICT, WITHOUT ROWID;

-- What plugins and automations asked models for: no turns, but each counts for a day of its agent and of its caller.
CREATE TABLE calls (
  call_id       TEXT PRIMARY KEY,
  -- plugin:NAME or automation:NAME
  caller        TEXT NOT NULL,
  agent         TEXT NOT NULL,
  -- In whose hook it was asked, if in any.
  request_id    TEXT,
  input_tokens  INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  -- Some of it by the length of texts, since the model didn't count.
  estimated     INTEGER NOT NULL,
  cost_usd      REAL,
  started_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_by_caller ON calls (caller, started_at);
CREATE INDEX calls_by_agent ON calls (agent, started_at);

CREATE TABLE messages (
  turn_id TEXT NOT NULL,
  n       INTEGER NOT NULL,
  role    TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
  content TEXT NOT NULL,
  PRIMARY KEY (turn_id, n)
) STRICT, WITHOUT ROWID;

-- Whose words a turn answers, as channel:sender.
CREATE TABLE speakers (
  turn_id TEXT NOT NULL,
  speaker TEXT NOT NULL,
  -- What that one was called, where others may speak too.
  name    TEXT,
  PRIMARY KEY (turn_id, speaker)
) STRICT, WITHOUT ROWID;

CREATE TABLE tool_calls (
  turn_id TEXT NOT NULL,
  n       INTEGER NOT NULL,
  call_id TEXT NOT NULL,
  name    TEXT NOT NULL,
  status  TEXT NOT NULL,
  summary TEXT,
  -- As far as they are kept; cut off where they are long.
  arguments TEXT,
  result    TEXT,
  PRIMARY KEY (turn_id, n)
) STRICT, WITHOUT ROWID;

-- A label that points at the newest turn. One that is archived begins anew with its next turn.
CREATE TABLE sessions (
  label      TEXT PRIMARY KEY,
  agent      TEXT NOT NULL,
  head       TEXT NOT NULL,
  turns      INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  archived_at INTEGER
) STRICT, WITHOUT ROWID;

-- Labels that were the session's before its sender became known.
CREATE TABLE session_aliases (
  alias      TEXT PRIMARY KEY,
  label      TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_by_label ON session_aliases (label);

-- What a label pointed at before: it was archived and began anew, or its sender's other session went on.
CREATE TABLE session_history (
  seq        INTEGER PRIMARY KEY,
  label      TEXT NOT NULL,
  agent      TEXT NOT NULL,
  head       TEXT NOT NULL,
  turns      INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  ended_at   INTEGER NOT NULL,
  reason     TEXT NOT NULL CHECK (reason IN ('archived', 'promoted')),
  -- Of one that was promoted: the session that went on.
  successor  TEXT
) STRICT;
CREATE INDEX history_by_label ON session_history (label);

-- Which session of an ACP agent's own a label has there. The agent may have forgotten it since.
CREATE TABLE acp_sessions (
  agent          TEXT NOT NULL,
  label          TEXT NOT NULL,
  session_id     TEXT NOT NULL,
  -- The newest turn that it has heard, whose run may have been interrupted, and the one before it.
  turn_id        TEXT NOT NULL,
  parent_turn_id TEXT,
  PRIMARY KEY (agent, label)
) STRICT, WITHOUT ROWID;
