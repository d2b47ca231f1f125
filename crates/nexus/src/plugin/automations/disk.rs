//! The automations on the disk, for those who look while no daemon runs: what is to be started to see whether each
//! loads. It starts nothing.

use super::super::disk::Load;
use super::super::frame;
use super::{files, host};
use nexus_core::automation::Triggers;
use nexus_core::ids::ChildId;
use serde_json::Value;
use std::path::Path;

/// Its number in a process of its own.
const GUEST: u64 = 1;

/// Each automation by its name, or why its file is none. Each has a process of its own, so that none takes another along.
pub(crate) fn on_disk(directory: &Path) -> Vec<(String, Result<Load, String>)> {
    let load = |name: &str| {
        let file = files::read(directory, name).map_err(|(_, why)| why)?;
        let lines = frame::load(GUEST, name, &file.path.to_string_lossy(), &file.source);
        Ok(Load::Host { spec: host::spec(ChildId::new(format!("doctor/automation/{name}"))), lines })
    };
    let judged = files::look(directory).into_iter();
    judged.map(|(name, version)| (name.clone(), version.map_err(|(_, why)| why).and_then(|_| load(&name)))).collect()
}

/// Whether the triggers of a file can be used; a plugin has none.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn judge(triggers: &Value) -> Result<(), String> {
    Triggers::read(triggers).map(drop)
}
