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
  -- A person told its turn to end, for this: no later start asks its agent again.
  stopped      TEXT,
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
  -- Of several requests that began it the newest, which is replied to. Those that joined it later are newer.
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

-- Projects that were asked for. `definition` is the signed event that the directory was prepared from.
CREATE TABLE projects (
  coordinate    TEXT PRIMARY KEY,
  slug          TEXT NOT NULL UNIQUE,
  path          TEXT NOT NULL,
  title         TEXT NOT NULL,
  status        TEXT NOT NULL CHECK (status IN ('discovered', 'preparing', 'needs_configuration', 'ready', 'archived')),
  -- Why it can't go on as it is, if it can't.
  reason        TEXT,
  -- Why it isn't started any more, until somebody releases it or its definition changes; and a mark of the configuration by
  -- which it ran then, of which another one ends it too.
  quarantined       TEXT,
  quarantined_under TEXT,
  definition_id TEXT,
  definition    TEXT,
  -- Public keys of its agents: a JSON array of strings in hex.
  agents        TEXT NOT NULL DEFAULT '[]',
  -- What of its definition could not be used: a JSON array of sentences.
  problems      TEXT NOT NULL DEFAULT '[]',
  prepared_at   INTEGER,
  last_used     INTEGER,
  created_at    INTEGER NOT NULL,
  updated_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What an event would install that runs, and what was decided about it: the exact command of the exact event.
CREATE TABLE approvals (
  id         INTEGER PRIMARY KEY AUTOINCREMENT, -- never given again: somebody may be looking at it
  project    TEXT NOT NULL,
  kind       TEXT NOT NULL CHECK (kind IN ('host', 'mcp', 'tools')),
  subject    TEXT NOT NULL,
  command    TEXT NOT NULL,
  event_id   TEXT NOT NULL,
  status     TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'denied')),
  asked_at   INTEGER NOT NULL,
  decided_at INTEGER,
  UNIQUE (project, kind, subject, command, event_id)
) STRICT;

-- Requests that failed only because their project waited: for an approval, for its configuration, or for where its definition
-- and repository come from. Their ends are final: once nothing is waited for any more each event is replayed, and its row goes.
CREATE TABLE project_waits (
  event_seq INTEGER PRIMARY KEY,
  project   TEXT NOT NULL,
  awaits    TEXT NOT NULL CHECK (awaits IN ('approval', 'configuration', 'source')),
  approval  INTEGER CHECK ((approval IS NOT NULL) = (awaits = 'approval')),
  at        INTEGER NOT NULL
) STRICT;
CREATE INDEX waits_by_project ON project_waits (project, awaits, approval);

-- Verified definitions that came over Nostr. `slot` is the place of which only one event counts: the coordinate of a
-- replaceable one, else the event's own id.
CREATE TABLE nostr_events (
  slot        TEXT PRIMARY KEY,
  id          TEXT NOT NULL,
  kind        INTEGER NOT NULL,
  pubkey      TEXT NOT NULL,
  -- NULL for an event that replaces none.
  identifier  TEXT,
  created_at  INTEGER NOT NULL,
  received_at INTEGER NOT NULL,
  event       TEXT NOT NULL
) STRICT;
CREATE INDEX nostr_events_by_id ON nostr_events (id);
CREATE INDEX nostr_events_by_kind ON nostr_events (kind);

-- What authors deleted of their own: an id, or a coordinate up to a time in Unix seconds.
CREATE TABLE nostr_deleted (
  target TEXT NOT NULL,
  pubkey TEXT NOT NULL,
  until  INTEGER NOT NULL,
  PRIMARY KEY (target, pubkey)
) STRICT;

-- Signed events, once for each key that their maker gave.
CREATE TABLE nostr_published (
  seq         INTEGER PRIMARY KEY,
  event_id    TEXT NOT NULL UNIQUE,
  once        TEXT NOT NULL UNIQUE,
  kind        INTEGER NOT NULL,
  event       TEXT NOT NULL,
  -- Accepted: by one relay at least.
  status      TEXT NOT NULL CHECK (status IN ('waiting', 'accepted', 'refused', 'expired')),
  created_at  INTEGER NOT NULL,
  expires_at  INTEGER NOT NULL,
  accepted_at INTEGER
) STRICT;
CREATE INDEX nostr_published_waiting ON nostr_published (status) WHERE status = 'waiting';
CREATE INDEX nostr_published_age ON nostr_published (expires_at);

-- How far each relay is with each of them.
CREATE TABLE nostr_outbox (
  event_id        TEXT NOT NULL,
  relay           TEXT NOT NULL,
  status          TEXT NOT NULL CHECK (status IN ('pending', 'accepted', 'refused', 'expired')),
  attempts        INTEGER NOT NULL DEFAULT 0,
  next_attempt_at INTEGER NOT NULL,
  error           TEXT,
  updated_at      INTEGER NOT NULL,
  PRIMARY KEY (event_id, relay)
) STRICT;
CREATE INDEX nostr_outbox_due ON nostr_outbox (relay, next_attempt_at) WHERE status = 'pending';

CREATE VIEW nex_traces AS
  SELECT request_id, event_seq, event_id, channel, account_id, status, stage, session, agent,
         attempts, created_at, completed_at, reason, trace FROM nexus_requests;
