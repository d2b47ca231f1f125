//! Whether what lies on the disk would load, for those who look while no daemon runs: what is to be started for it, and
//! what that says. It starts nothing.

use super::found::{self, Kind};
use super::frame::{self, Up};
use super::process;
use crate::keeper::SpawnSpec;
use nexus_core::ids::ChildId;
use std::path::Path;

/// What is started to see whether something loads.
#[derive(Debug)]
pub(crate) enum Load {
    /// Our own host, which says at once what became of it; with these lines on its stdin.
    Host { spec: SpawnSpec, lines: Vec<u8> },
    /// A program, which says nothing of itself until it is asked.
    Program(SpawnSpec),
}

/// The plugin `name`.
///
/// # Errors
/// Why its files are none.
pub(crate) fn plugin(directory: &Path, name: &str) -> Result<Load, String> {
    let found = found::find(directory, name)?;
    let spec = process::spec(&found, ChildId::new(format!("doctor/plugin/{name}")));
    Ok(match found.kind {
        Kind::Script(_) => Load::Host { spec, lines: Vec::new() },
        Kind::Program { .. } => Load::Program(spec),
    })
}

/// What a host has said of the file `name`.
///
/// # Errors
/// Why it doesn't load.
pub(crate) fn heard(stdout: &[u8], name: &str) -> Result<(), String> {
    for line in stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match frame::read(line)?.up {
            Up::Ready(ready) if ready.name != name => return Err(format!("it says that its name is `{}`", ready.name)),
            Up::Ready(ready) => return super::automations::judge(&ready.triggers),
            Up::Fatal(why) => return Err(why),
            Up::Log { .. } | Up::Call { .. } | Up::Answer { .. } => {}
        }
    }
    Err("it did not say what it is".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_host_says_is_read_to_what_it_is() {
        let said = |text: &str| heard(text.as_bytes(), "x");
        let log = "{\"log\":{\"level\":\"info\",\"message\":\"hi\"}}\n";
        assert_eq!(said(&format!("{log}{{\"ready\":{{\"name\":\"x\",\"hooks\":[\"onError\"]}}}}\n")), Ok(()));
        assert!(said("{\"ready\":{\"name\":\"y\"}}\n").unwrap_err().contains("its name is `y`"));
        assert_eq!(said("{\"fatal\":{\"message\":\"no\",\"file\":\"x.js\",\"line\":3}}\n").unwrap_err(), "x.js:3: no");
        assert!(said("{\"ready\":{\"name\":\"x\",\"triggers\":{\"events\":1}}}\n").is_err());
        assert!(said("").unwrap_err().contains("did not say"));
        assert!(said("hello\n").unwrap_err().contains("not a frame"));
    }

    #[test]
    fn a_script_needs_its_host_and_a_program_itself() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("one.js"), "").unwrap();
        std::fs::create_dir(place.path().join("two")).unwrap();
        std::fs::write(place.path().join("two/plugin.yaml"), "{command: run it, hooks: [onError]}").unwrap();
        assert!(matches!(plugin(place.path(), "one").unwrap(), Load::Host { spec, .. } if spec.argv[1] == "__plugin-host"));
        assert!(matches!(plugin(place.path(), "two").unwrap(), Load::Program(spec) if spec.argv == ["run", "it"]));
        assert!(plugin(place.path(), "three").unwrap_err().contains("there is no three.ts"));
    }
}
