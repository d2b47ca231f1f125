//! Names of things, each its own type so that one can't be passed for another.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of one intended child process, unique within a daemon: `adapter/gog/me`,
/// `agent/echo/run_01...`. It is what `NEXUS_CHILD_ID` carries after the instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChildId(String);

impl ChildId {
    /// Takes any text; control characters and `:` (the mark's separator) become `_`.
    pub fn new(name: impl AsRef<str>) -> Self {
        let clean = |c: char| if c.is_control() || c == ':' { '_' } else { c };
        Self(name.as_ref().chars().map(clean).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One account of one adapter, written `adapter/account` as in the requirement's samples.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountKey {
    pub adapter: String,
    pub account: String,
}

impl AccountKey {
    pub fn new(adapter: impl Into<String>, account: impl Into<String>) -> Self {
        Self { adapter: adapter.into(), account: account.into() }
    }

    /// Reads `adapter/account`; `None` when either part is missing.
    pub fn parse(text: &str) -> Option<Self> {
        let (adapter, account) = text.split_once('/')?;
        (!adapter.is_empty() && !account.is_empty()).then(|| Self::new(adapter, account))
    }
}

impl fmt::Display for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.adapter, self.account)
    }
}
