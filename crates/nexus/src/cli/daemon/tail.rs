//! The last lines of a file that may be huge, and the lines that come after. It reads backwards in
//! blocks, and holds no more than what it returns and one line.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Size of one read, in bytes.
const BLOCK_BYTES: u64 = 64 * 1024;
/// Longest line, in bytes; of a longer one the rest is left out.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// How far back lines are looked for, in bytes.
const SCAN_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The last `count` lines within `range` for which `keep` is true, oldest first, without line ends.
pub(crate) fn last_lines(file: &File, range: Range<u64>, count: usize, keep: impl Fn(&[u8]) -> bool) -> io::Result<Vec<Vec<u8>>> {
    let mut position = range.end;
    let start = range.start.max(range.end.saturating_sub(SCAN_BYTES_MAX)).min(position);
    // Newest first while reading.
    let mut lines: Vec<Vec<u8>> = Vec::new();
    // The beginning of a line whose start is in an earlier block.
    let mut open: Vec<u8> = Vec::new();
    while position > start && lines.len() < count {
        let size = BLOCK_BYTES.min(position - start);
        position -= size;
        let mut block = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        file.read_exact_at(&mut block, position)?;
        block.append(&mut open);
        let mut rest = block.as_slice();
        while let Some(at) = memchr::memrchr(b'\n', rest) {
            take(&rest[at + 1..], count, &keep, &mut lines);
            rest = &rest[..at];
        }
        open = rest[..rest.len().min(LINE_BYTES_MAX)].to_vec();
    }
    if position == start {
        take(&open, count, &keep, &mut lines);
    }
    lines.reverse();
    Ok(lines)
}

fn take(line: &[u8], count: usize, keep: &impl Fn(&[u8]) -> bool, lines: &mut Vec<Vec<u8>>) {
    if !line.is_empty() && lines.len() < count && keep(line) {
        lines.push(line.to_vec());
    }
}

/// Where the last line that has its end ends.
pub(crate) fn end_of_lines(file: &File) -> io::Result<u64> {
    let mut position = file.metadata()?.len();
    while position > 0 {
        let size = BLOCK_BYTES.min(position);
        let mut block = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        file.read_exact_at(&mut block, position - size)?;
        if let Some(at) = memchr::memrchr(b'\n', &block) {
            return Ok(position - size + at as u64 + 1);
        }
        position -= size;
    }
    Ok(0)
}

/// Follows a file by its path, also when another file takes its place (logrotate) or it is cut.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    file: File,
    position: u64,
    open: Vec<u8>,
}

impl Follower {
    /// Starts behind `position` of the file that is open now.
    pub(crate) fn new(path: &Path, file: File, position: u64) -> Self {
        Self { path: path.to_path_buf(), file, position, open: Vec::new() }
    }

    /// The lines that are complete by now, at most a few blocks of them; `false` with them when there
    /// is no more for now.
    pub(crate) fn poll(&mut self) -> io::Result<(Vec<Vec<u8>>, bool)> {
        if self.file.metadata()?.len() < self.position {
            (self.position, self.open) = (0, Vec::new());
        }
        let mut block = vec![0; usize::try_from(BLOCK_BYTES).map_err(io::Error::other)?];
        let count = self.file.read_at(&mut block, self.position)?;
        if count == 0 {
            return Ok((Vec::new(), self.switch()?));
        }
        self.position += count as u64;
        let mut lines = Vec::new();
        for piece in block[..count].split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX - self.open.len().min(LINE_BYTES_MAX);
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.open.extend_from_slice(&end[..end.len().min(room)]);
                    lines.push(std::mem::take(&mut self.open));
                }
                None => self.open.extend_from_slice(&piece[..piece.len().min(room)]),
            }
        }
        lines.retain(|line| !line.is_empty());
        Ok((lines, true))
    }

    /// Goes on with the file that has the path now, if it is another one.
    fn switch(&mut self) -> io::Result<bool> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            // Between the renaming and the reopening there is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let (old, new) = (self.file.metadata()?, file.metadata()?);
        if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
            return Ok(false);
        }
        (self.file, self.position, self.open) = (file, 0, Vec::new());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    fn file(text: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file
    }

    fn last(text: &[u8], count: usize) -> Vec<String> {
        let lines = last_lines(&file(text), 0..text.len() as u64, count, |_| true).unwrap();
        lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn few_lines_many_lines_and_none() {
        assert_eq!(last(b"a\nb\nc\n", 2), ["b", "c"]);
        assert_eq!(last(b"a\nb\nc\n", 9), ["a", "b", "c"]);
        assert_eq!(last(b"a\nhalf", 1), ["half"]);
        assert_eq!(last(b"", 5), Vec::<String>::new());
        assert_eq!(last(b"\n\n", 5), Vec::<String>::new());
    }

    #[test]
    fn lines_across_blocks_are_whole() {
        let lines: Vec<String> = (0..5000).map(|number| format!("{number}-{}", "x".repeat(number % 100))).collect();
        let text = lines.join("\n") + "\n";
        assert!(text.len() as u64 > 3 * BLOCK_BYTES);
        assert_eq!(last(text.as_bytes(), 4000), lines[1000..]);
        assert_eq!(last(text.as_bytes(), 10_000), lines);
    }

    #[test]
    fn the_range_and_the_filter_hold() {
        let file = file(b"old\nnew 1\nnew 2\nodd\n");
        let kept = last_lines(&file, 4..20, 9, |line| line.starts_with(b"new")).unwrap();
        assert_eq!(kept, [b"new 1".to_vec(), b"new 2".to_vec()]);
    }

    #[test]
    fn a_line_without_end_is_cut_and_harmless() {
        let text = vec![b'x'; 3 * LINE_BYTES_MAX];
        let lines = last_lines(&file(&text), 0..text.len() as u64, 1, |_| true).unwrap();
        assert!(lines[0].len() <= LINE_BYTES_MAX + usize::try_from(BLOCK_BYTES).unwrap());
        assert_eq!(end_of_lines(&file(&text)).unwrap(), 0);
        assert_eq!(end_of_lines(&file(b"a\nb\nhal")).unwrap(), 4);
    }

    #[test]
    fn following_survives_half_lines_rotation_and_truncation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nex.log");
        let mut log = File::create(&path).unwrap();
        log.write_all(b"seen\n").unwrap();
        let mut follower = Follower::new(&path, File::open(&path).unwrap(), 5);
        log.write_all(b"one\ntw").unwrap();
        assert_eq!(follower.poll().unwrap(), (vec![b"one".to_vec()], true));
        assert_eq!(follower.poll().unwrap(), (vec![], false));
        log.write_all(b"o\n").unwrap();
        std::fs::rename(&path, directory.path().join("nex.log.1")).unwrap();
        assert_eq!(follower.poll().unwrap(), (vec![b"two".to_vec()], true));
        assert_eq!(follower.poll().unwrap(), (vec![], false));
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(follower.poll().unwrap(), (vec![], true));
        assert_eq!(follower.poll().unwrap(), (vec![b"three".to_vec()], true));
        std::fs::write(&path, "4\n").unwrap();
        assert_eq!(follower.poll().unwrap(), (vec![b"4".to_vec()], true));
    }
}
