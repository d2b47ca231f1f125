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
CREATE INDEX contacts_seen ON contacts (last_seen);

CREATE TABLE entities (
  entity_id    TEXT PRIMARY KEY,
  name         TEXT,
  relationship TEXT,
  created_at   INTEGER NOT NULL,
  -- The entity that this one is counted as, and what that is merged into in turn. Rows stay as they were linked and tagged,
  -- so that a merge can be taken back. The owner is never merged into another.
  merged_into  TEXT REFERENCES entities (entity_id),
  CHECK (merged_into IS NULL OR (merged_into <> entity_id AND entity_id <> 'owner'))
) STRICT, WITHOUT ROWID;
CREATE INDEX entities_merged ON entities (merged_into) WHERE merged_into IS NOT NULL;
INSERT INTO entities VALUES ('owner', NULL, 'owner', 0, NULL);

CREATE TABLE identity_mappings (
  channel    TEXT NOT NULL,
  sender_id  TEXT NOT NULL,
  entity_id  TEXT NOT NULL REFERENCES entities (entity_id),
  -- How sure it is. One that is less sure than 0.5 is shown, and makes nobody known.
  confidence REAL NOT NULL CHECK (confidence BETWEEN 0 AND 1),
  -- Who says so.
  source     TEXT NOT NULL,
  linked_at  INTEGER NOT NULL,
  PRIMARY KEY (channel, sender_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX mappings_by_entity ON identity_mappings (entity_id);

CREATE TABLE entity_tags (
  entity_id TEXT NOT NULL REFERENCES entities (entity_id),
  tag       TEXT NOT NULL,
  PRIMARY KEY (entity_id, tag)
) STRICT, WITHOUT ROWID;
