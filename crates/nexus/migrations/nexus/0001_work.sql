-- All work, and the only file with a status.
CREATE TABLE counters (
  name  TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('epoch', 0), ('intake_seq', 0), ('finish_seq', 0), ('sent_seq', 0);

CREATE TABLE nexus_requests (
  event_seq    INTEGER PRIMARY KEY,
  request_id   TEXT NOT NULL UNIQUE,
  event_id     TEXT NOT NULL,
  channel      TEXT NOT NULL,
  account_id   TEXT NOT NULL,
  adapter      TEXT NOT NULL,
  conversation TEXT NOT NULL,
  status       TEXT NOT NULL CHECK (status IN ('waiting', 'processing', 'interrupted',
                 'completed', 'denied', 'handled_by_automation', 'failed', 'expired')),
  stage        TEXT NOT NULL,
  session      TEXT,
  agent        TEXT,
  -- Its last run, which several requests may share.
  run_id       TEXT,
  attempts     INTEGER NOT NULL DEFAULT 0,
  late         INTEGER NOT NULL DEFAULT 0,
  created_at   INTEGER NOT NULL,
  completed_at INTEGER,
  reason       TEXT,
  trace        TEXT,
  epoch        INTEGER NOT NULL
) STRICT;
CREATE INDEX requests_open ON nexus_requests (event_seq) WHERE status IN ('waiting', 'processing', 'interrupted');
CREATE INDEX requests_done ON nexus_requests (completed_at) WHERE trace IS NOT NULL AND completed_at IS NOT NULL;

-- Each decision of stage 3, written with what followed from it: the request's end, or the start of its run. Of a request
-- that was decided about more than once, as after a crash, the last one.
CREATE TABLE access_audit (
  event_seq  INTEGER PRIMARY KEY,
  at         INTEGER NOT NULL,
  request_id TEXT NOT NULL,
  channel    TEXT NOT NULL,
  account_id TEXT NOT NULL,
  sender_id  TEXT NOT NULL,
  principal  TEXT NOT NULL,
  entity_id  TEXT,
  decision   TEXT NOT NULL CHECK (decision IN ('allow', 'deny')),
  policy     TEXT,
  reason     TEXT NOT NULL
) STRICT;
CREATE INDEX audit_age ON access_audit (at);
CREATE INDEX audit_by_sender ON access_audit (channel, sender_id, event_seq);
-- Without the timer's, of which there is one a minute.
CREATE INDEX audit_people ON access_audit (event_seq) WHERE principal <> 'system';

-- What automations know from one event to the next. One that disabled itself is not asked until a person enables it.
CREATE TABLE automations (
  name       TEXT PRIMARY KEY,
  state      TEXT,
  disabled   INTEGER NOT NULL DEFAULT 0,
  updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What an automation said about an event, where that changed what it knows: written with that change. A request that passes
-- stage 4 again, as after a crash, is told this.
CREATE TABLE automation_results (
  event_seq INTEGER NOT NULL,
  name      TEXT NOT NULL,
  result    TEXT NOT NULL,
  at        INTEGER NOT NULL,
  PRIMARY KEY (event_seq, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX results_age ON automation_results (at);

CREATE TABLE runs (
  run_id       TEXT PRIMARY KEY,
  -- Of several requests that share it, the newest: that one is replied to.
  event_seq    INTEGER NOT NULL,
  attempt      INTEGER NOT NULL,
  agent        TEXT NOT NULL,
  session      TEXT NOT NULL,
  status       TEXT NOT NULL CHECK (status IN ('running', 'finished', 'failed', 'interrupted')),
  -- A tool call started: running it again would repeat it.
  acted        INTEGER NOT NULL DEFAULT 0,
  -- A part of its answer left, or was to leave, before its end: running it again would say that twice.
  spoke        INTEGER NOT NULL DEFAULT 0,
  started_at   INTEGER NOT NULL,
  finished_at  INTEGER,
  finish_seq   INTEGER UNIQUE,
  -- Of an interrupted run, which has no finish_seq: what the agent had said, if the daemon could write that.
  turn_json    TEXT,
  epoch        INTEGER NOT NULL
) STRICT;
CREATE INDEX runs_by_request ON runs (event_seq);
CREATE INDEX runs_running ON runs (run_id) WHERE status = 'running';
CREATE INDEX runs_texts ON runs (finished_at) WHERE turn_json IS NOT NULL;

CREATE TABLE deliveries (
  seq             INTEGER PRIMARY KEY,
  delivery_id     TEXT NOT NULL UNIQUE,
  request_id      TEXT NOT NULL,
  event_seq       INTEGER NOT NULL,
  run_id          TEXT,
  adapter         TEXT NOT NULL,
  channel         TEXT NOT NULL,
  account_id      TEXT NOT NULL,
  target          TEXT NOT NULL,
  thread_id       TEXT,
  reply_to_id     TEXT,
  idempotency_key TEXT NOT NULL UNIQUE,
  content         TEXT NOT NULL,
  status          TEXT NOT NULL CHECK (status IN ('pending', 'sending', 'sent', 'failed', 'uncertain', 'expired', 'discarded')),
  attempts        INTEGER NOT NULL DEFAULT 0,
  next_attempt_at INTEGER,
  message_ids     TEXT,
  error           TEXT,
  created_at      INTEGER NOT NULL,
  updated_at      INTEGER NOT NULL,
  expires_at      INTEGER NOT NULL,
  sent_seq        INTEGER UNIQUE,
  epoch           INTEGER NOT NULL
) STRICT;
CREATE INDEX deliveries_by_request ON deliveries (event_seq);
CREATE INDEX deliveries_open ON deliveries (seq) WHERE status IN ('pending', 'sending', 'uncertain');
CREATE INDEX deliveries_dead ON deliveries (status) WHERE status IN ('failed', 'expired');

CREATE TABLE adapter_instances (
  adapter               TEXT NOT NULL,
  account               TEXT NOT NULL,
  status                TEXT NOT NULL,
  health                TEXT NOT NULL,
  pid                   INTEGER,
  restart_count         INTEGER NOT NULL DEFAULT 0,
  events_received       INTEGER NOT NULL DEFAULT 0,
  last_error            TEXT,
  backfill_completed_at INTEGER,
  -- What the adapter last said of itself, so that it is known of one that doesn't run.
  channel               TEXT,
  info                  TEXT,
  updated_at            INTEGER NOT NULL,
  epoch                 INTEGER NOT NULL,
  PRIMARY KEY (adapter, account)
) STRICT, WITHOUT ROWID;

-- The configuration texts that were in force, newest last.
CREATE TABLE config (
  seq        INTEGER PRIMARY KEY,
  applied_at INTEGER NOT NULL,
  text       TEXT NOT NULL
) STRICT;

CREATE TABLE analytics_hourly (
  hour       INTEGER NOT NULL,
  channel    TEXT NOT NULL,
  agent      TEXT NOT NULL,
  status     TEXT NOT NULL,
  requests   INTEGER NOT NULL,
  latency_ms REAL NOT NULL,
  PRIMARY KEY (hour, channel, agent, status)
) STRICT, WITHOUT ROWID;

CREATE VIEW nex_traces AS
  SELECT request_id, event_seq, event_id, channel, account_id, status, stage, session, agent,
         attempts, created_at, completed_at, reason, trace FROM nexus_requests;
