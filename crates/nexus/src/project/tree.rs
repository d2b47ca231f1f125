//! A directory that others fill: how large it is, and whether a symbolic link in it leads out. It only looks, follows
//! no link, and changes nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Entries that are looked at; a tree with more counts as too large.
const ENTRIES_MAX: u64 = 5_000_000;
/// A block of `stat(2)`, whatever the file system's are.
const BLOCK_BYTES: u64 = 512;

/// A link that leads out of its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Escape {
    /// From the tree's root.
    pub(super) link: PathBuf,
    pub(super) target: PathBuf,
}

/// Bytes on the disk, of at most as many as make no difference: counting ends above `limit_bytes`. What vanishes
/// meanwhile, as git's temporary files do, is not counted.
pub(super) fn bytes(root: &Path, limit_bytes: u64) -> io::Result<u64> {
    let (mut total, mut entries) = (0_u64, 0_u64);
    walk(root, &mut |_, metadata| {
        entries += 1;
        total = total.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
        if entries > ENTRIES_MAX {
            total = u64::MAX;
        }
        total <= limit_bytes
    })?;
    Ok(total)
}

/// The first link that leads out of `root`, apart from what is in `.git`. Nobody may write there meanwhile.
pub(super) fn escape(root: &Path) -> io::Result<Option<Escape>> {
    let root = root.canonicalize()?;
    let mut found = None;
    let git = root.join(".git");
    let mut failed = None;
    walk(&root, &mut |path, metadata| {
        if !metadata.is_symlink() || path.starts_with(&git) {
            return true;
        }
        match leads_out(&root, path) {
            Ok(None) => true,
            Ok(Some(target)) => {
                let link = path.strip_prefix(&root).unwrap_or(path).to_owned();
                found = Some(Escape { link, target });
                false
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    })?;
    failed.map_or(Ok(found), Err)
}

/// The target, if it is outside. One that doesn't exist is judged by its text: it may come to exist.
fn leads_out(root: &Path, link: &Path) -> io::Result<Option<PathBuf>> {
    let target = fs::read_link(link)?;
    let inside = match link.canonicalize() {
        Ok(path) => path.starts_with(root),
        Err(_) => !target.is_absolute() && !target.components().any(|part| part == std::path::Component::ParentDir),
    };
    Ok((!inside).then_some(target))
}

/// Calls `visit` with each entry below `root` until it says no more. Follows no link.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> bool) -> io::Result<()> {
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Some(list) = present(fs::read_dir(&directory))? else { continue };
        for entry in list {
            let Some(entry) = present(entry)? else { continue };
            let path = entry.path();
            let Some(metadata) = present(fs::symlink_metadata(&path))? else { continue };
            if !visit(&path, &metadata) {
                return Ok(());
            }
            if metadata.is_dir() {
                waiting.push(path);
            }
        }
    }
    Ok(())
}

/// `None` of what has vanished meanwhile. What can't be looked at may be a link that leads out.
fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::write(root.join("sub/file"), vec![b'x'; 100_000]).unwrap();
        (directory, root)
    }

    #[test]
    fn counting_ends_at_the_limit() {
        let (_directory, root) = tree();
        let all = bytes(&root, u64::MAX).unwrap();
        assert!((100_000..1_000_000).contains(&all), "{all}");
        assert!(bytes(&root, 10).unwrap() > 10);
        assert_eq!(bytes(&root.join("gone"), 10).unwrap(), 0);
    }

    #[test]
    fn links_may_stay_inside() {
        let (_directory, root) = tree();
        symlink("sub/file", root.join("a")).unwrap();
        symlink("../sub", root.join("sub/b")).unwrap();
        symlink("nowhere", root.join("c")).unwrap();
        assert_eq!(escape(&root).unwrap(), None);
    }

    #[test]
    fn links_that_lead_out_are_found() {
        for target in ["/etc/passwd", "../outside", "..", "sub/../../outside", "/nowhere-at-all", "../nowhere-at-all"] {
            let (directory, root) = tree();
            fs::write(directory.path().join("outside"), "x").unwrap();
            symlink(target, root.join("link")).unwrap();
            let found = escape(&root).unwrap().unwrap();
            assert_eq!((found.link.as_path(), found.target.as_path()), (Path::new("link"), Path::new(target)));
        }
    }

    #[test]
    fn a_way_out_over_other_links_is_found() {
        let (directory, root) = tree();
        fs::write(directory.path().join("outside"), "x").unwrap();
        symlink(".", root.join("d")).unwrap();
        symlink("d/d/../outside", root.join("x")).unwrap();
        assert!(escape(&root).unwrap().is_some());
    }

    #[test]
    fn what_has_vanished_is_left_out_and_what_cannot_be_looked_at_is_an_error() {
        let failed = |kind: io::ErrorKind| present::<()>(Err(io::Error::from(kind)));
        assert_eq!(failed(io::ErrorKind::NotFound).unwrap(), None);
        assert_eq!(failed(io::ErrorKind::PermissionDenied).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(present(Ok(1)).unwrap(), Some(1));
    }
}
