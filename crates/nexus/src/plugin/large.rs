//! Texts of a request that are too long for a frame: they are lent to a plugin as files, which are gone
//! once it has answered.

use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest text that goes into a frame, in bytes.
pub(super) const INLINE_BYTES_MAX: usize = 64 * 1024;
const PREFIX: &str = "plugin-";
const SUFFIX: &str = ".txt";

/// Files that are removed when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            remove(path);
        }
    }
}

/// `view` with `{"$file": path}` in the place of every long text; the files lie in `directory` and can
/// be read by this user only.
///
/// # Errors
/// Of the file system.
pub(super) async fn lend(mut view: Value, directory: &Path) -> io::Result<(Value, Files)> {
    if !has_long(&view) {
        return Ok((view, Files::default()));
    }
    let directory = directory.to_owned();
    let writing = move || {
        let mut files = Files::default();
        replace(&mut view, &directory, &mut files).map(|()| (view, files))
    };
    crate::watch::blocking("plugin.large", writing).await.map_err(io::Error::other)?
}

/// Removes what a daemon that was killed has left in `directory`.
pub(super) fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file that was lent to a plugin can't be removed");
    }
}

fn has_long(value: &Value) -> bool {
    if let Some(text) = value.as_str() {
        return text.len() > INLINE_BYTES_MAX;
    }
    value.as_array().is_some_and(|items| items.iter().any(has_long)) || value.as_object().is_some_and(|map| map.values().any(has_long))
}

fn replace(value: &mut Value, directory: &Path, files: &mut Files) -> io::Result<()> {
    if let Some(text) = value.as_str() {
        if text.len() > INLINE_BYTES_MAX {
            let path = directory.join(format!("{PREFIX}{}{SUFFIX}", ulid::Ulid::generate()));
            files.0.push(path.clone());
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(text.as_bytes())?;
            *value = json!({ "$file": path });
        }
        return Ok(());
    }
    if let Some(items) = value.as_array_mut() {
        return items.iter_mut().try_for_each(|item| replace(item, directory, files));
    }
    value.as_object_mut().into_iter().flat_map(|map| map.values_mut()).try_for_each(|item| replace(item, directory, files))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn long_texts_are_files_for_as_long_as_they_are_lent() {
        let place = tempfile::tempdir().unwrap();
        let long = "x".repeat(INLINE_BYTES_MAX + 1);
        let short = "y".repeat(INLINE_BYTES_MAX);
        let view = json!({ "event": { "content": long, "metadata": [{ "a": short }] } });
        let (lent, files) = lend(view, place.path()).await.unwrap();
        let path = PathBuf::from(lent["event"]["content"]["$file"].as_str().unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), long);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(lent["event"]["metadata"][0]["a"], short.as_str());
        drop(files);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_an_error_and_leaves_nothing() {
        let view = json!({ "event": "x".repeat(INLINE_BYTES_MAX + 1) });
        assert!(lend(view, Path::new("/proc/nowhere")).await.is_err());
    }

    #[test]
    fn what_was_left_is_cleared_and_the_rest_stays() {
        let place = tempfile::tempdir().unwrap();
        for name in ["plugin-1.txt", "fake:me.json"] {
            fs::write(place.path().join(name), "").unwrap();
        }
        clear(place.path());
        let left: Vec<_> = fs::read_dir(place.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["fake:me.json"]);
    }
}
