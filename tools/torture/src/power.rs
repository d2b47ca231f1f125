//! Loss of power: what a process did to its files, from the log of `nexus-powerloss`, and those files as a disk could
//! be found afterwards. Only `trial` knows of the daemon and its ledgers.

pub(crate) mod disk;
pub(crate) mod log;
pub(crate) mod points;
pub(crate) mod rebuild;
pub(crate) mod trial;
