-- Contacts follow events.db by seq; entities and mappings are primary here.
CREATE TABLE applied (
  source TEXT PRIMARY KEY,
  seq    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE contacts (
  channel    TEXT NOT NULL,
  sender_id  TEXT NOT NULL,
  name       TEXT,
  first_seen INTEGER NOT NULL,
  last_seen  INTEGER NOT NULL,
  messages   INTEGER NOT NULL,
  PRIMARY KEY (channel, sender_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE entities (
  entity_id    TEXT PRIMARY KEY,
  name         TEXT,
  relationship TEXT,
  created_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO entities VALUES ('owner', NULL, 'owner', 0);

CREATE TABLE identity_mappings (
  channel   TEXT NOT NULL,
  sender_id TEXT NOT NULL,
  entity_id TEXT NOT NULL REFERENCES entities (entity_id),
  PRIMARY KEY (channel, sender_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX mappings_by_entity ON identity_mappings (entity_id);

CREATE TABLE entity_tags (
  entity_id TEXT NOT NULL REFERENCES entities (entity_id),
  tag       TEXT NOT NULL,
  PRIMARY KEY (entity_id, tag)
) STRICT, WITHOUT ROWID;
