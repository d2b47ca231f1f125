//! A disk of the world's own: a tmpfs on its data directory, which can be filled and made read-only.
//! Where nothing may be mounted there is none, and faults that need one are not done.

use crate::world::World;
use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

const SIZE: &std::ffi::CStr = c"size=400m";
/// Written at once while the disk is being filled.
const BLOCK_BYTES: usize = 64 * 1024;

/// The mounted disk; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one on the world's data directory; `None` where that isn't allowed.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn mount(world: &World) -> Result<Option<Self>> {
        use std::os::unix::fs::DirBuilderExt;
        let path = world.data();
        fs::DirBuilder::new().mode(0o700).create(&path).context("failed to make the data directory")?;
        if mount("nexus-torture", &path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, SIZE).is_err() {
            return Ok(None);
        }
        let disk = Self { path };
        fs::set_permissions(&disk.path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).context("failed to set the disk's mode")?;
        Ok(Some(disk))
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves no byte.
    ///
    /// # Errors
    /// Of the file system, but for the one that is wanted.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.ballast()).context("failed to make the ballast")?;
        let block = vec![0_u8; BLOCK_BYTES];
        while file.write_all(&block).is_ok() {}
        Ok(())
    }

    /// Gives back what [`Self::fill`] took.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn empty(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("failed to remove the ballast")
    }

    /// Makes it read-only, by force of the mount alone. False when files are open for writing, which the
    /// kernel doesn't allow.
    pub(crate) fn read_only(&self, read_only: bool) -> bool {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let flags = if read_only { flags | MountFlags::RDONLY } else { flags };
        mount_remount(&self.path, flags, SIZE).is_ok()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.read_only(false);
        // One that stays is gone with the mount namespace, and was only memory.
        unmount(&self.path, UnmountFlags::DETACH).unwrap_or_default();
    }
}
