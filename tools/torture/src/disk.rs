//! A disk of the world's own: a tmpfs on its data directory, which can be filled, made read-only, and turned so under who uses it.
//! Where nothing may be mounted there is none, and faults that need one are not done.

use crate::world::World;
use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

const NO_PRIVILEGES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const SIZE: &std::ffi::CStr = c"size=400m";
/// Written at once while the disk is being filled.
const BLOCK_BYTES: usize = 64 * 1024;

/// The mounted disk; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    /// A read-only mount of itself lies on top of it.
    is_covered: bool,
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
        if mount("nexus-torture", &path, "tmpfs", NO_PRIVILEGES, SIZE).is_err() {
            return Ok(None);
        }
        let disk = Self { path, is_covered: false };
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
        let flags = if read_only { NO_PRIVILEGES | MountFlags::RDONLY } else { NO_PRIVILEGES };
        mount_remount(&self.path, flags, SIZE).is_ok()
    }

    /// Turns it read-only under who has files of it open, until [`Self::uncover`]. What is opened, made, renamed or removed by its
    /// path meets a read-only mount on top of it; whose descriptors are older is refused by `nexus-powerloss`, as long as `flag`
    /// exists.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn cover(&mut self, flag: &Path) -> Result<()> {
        mount_bind(&self.path, &self.path).context("failed to mount the disk on itself")?;
        self.is_covered = true;
        let flags = NO_PRIVILEGES | MountFlags::BIND | MountFlags::RDONLY;
        mount_remount(&self.path, flags, c"").context("failed to make the mount read-only")?;
        fs::write(flag, "").context("failed to say that the disk is read-only")
    }

    /// Takes back what [`Self::cover`] did.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn uncover(&mut self, flag: &Path) -> Result<()> {
        // Detached: somebody may have opened a file of it to read.
        unmount(&self.path, UnmountFlags::DETACH).context("failed to unmount what covers the disk")?;
        self.is_covered = false;
        fs::remove_file(flag).context("failed to say that the disk can be written")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_covered {
            unmount(&self.path, UnmountFlags::DETACH).unwrap_or_default();
        }
        self.read_only(false);
        // One that stays is gone with the mount namespace, and was only memory.
        unmount(&self.path, UnmountFlags::DETACH).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::world::Cast;
    use std::io::ErrorKind;

    #[test]
    fn a_covered_disk_is_read_only_by_path_and_no_more_once_it_is_uncovered() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::default()).unwrap();
        let Some(mut disk) = Disk::mount(&world).unwrap() else { return }; // only root may, as in CI
        let (path, flag) = (world.data().join("file"), world.read_only());
        let mut open = fs::File::create(&path).unwrap();
        for round in 1..=2 {
            disk.cover(&flag).unwrap();
            assert_eq!(fs::write(&path, "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
            assert_eq!(fs::remove_file(&path).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
            assert!(flag.exists() && !disk.read_only(true), "a file is open for writing");
            open.write_all(b"x").unwrap();
            disk.uncover(&flag).unwrap();
            assert_eq!((fs::read(&path).unwrap().len(), flag.exists()), (round, false));
        }
        fs::remove_file(&path).unwrap();
        disk.cover(&flag).unwrap();
        drop(disk);
        assert_eq!(fs::read_dir(world.data()).unwrap().count(), 0);
        fs::remove_dir(world.data()).unwrap();
    }
}
