-- Notices kept for `bus.mode: write-through`. Tokens are never here.
CREATE TABLE bus_events (
  epoch INTEGER NOT NULL,
  seq   INTEGER NOT NULL,
  type  TEXT NOT NULL,
  ts    INTEGER NOT NULL,
  -- The frame as subscribers got it.
  frame BLOB NOT NULL,
  PRIMARY KEY (epoch, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX bus_events_age ON bus_events (ts);
