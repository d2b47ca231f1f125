//! What the ledgers of a place hold, read beside its daemon or without one. Never writes to them.

use super::{DEADLINE, Daemon};
use rusqlite::{Connection, OpenFlags, Row};

impl Daemon {
    /// Rows of a ledger, read beside the daemon.
    pub fn rows<T>(&self, ledger: &str, sql: &str, read: impl Fn(&Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
        let path = self.workspace().join(format!("data/{ledger}.db"));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        connection.busy_timeout(DEADLINE).unwrap();
        let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let rows = statement.query_map([], read).unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.collect::<rusqlite::Result<_>>().unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn count(&self, ledger: &str, sql: &str) -> i64 {
        self.rows(ledger, sql, |row| row.get(0))[0]
    }

    pub fn texts(&self, ledger: &str, sql: &str) -> Vec<String> {
        self.rows(ledger, sql, |row| row.get(0))
    }

    /// Inbound events of the adapters.
    pub fn accepted(&self) -> i64 {
        self.count("events", "SELECT count(*) FROM events WHERE direction = 'inbound' AND channel NOT IN ('cli', 'timer')")
    }

    /// Requests that came to this end.
    pub fn ended(&self, status: &str) -> i64 {
        self.count("nexus", &format!("SELECT count(*) FROM nexus_requests WHERE status = '{status}'"))
    }

    /// Requests that came to any end.
    pub fn terminal(&self) -> i64 {
        let open = "('waiting', 'processing', 'interrupted')";
        self.count("nexus", &format!("SELECT count(*) FROM nexus_requests WHERE status NOT IN {open}"))
    }

    pub fn deliveries(&self, status: &str) -> i64 {
        self.count("nexus", &format!("SELECT count(*) FROM deliveries WHERE status = '{status}'"))
    }
}
