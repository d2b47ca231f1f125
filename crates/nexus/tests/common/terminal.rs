//! A command of the CLI at a terminal: what it shows, what is typed there, and how it ends. Owns the pseudo-terminal and
//! the process, and knows nothing of what is said.

use super::{Daemon, find};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Stdio};

/// Wide enough that nothing is broken into lines.
const SIZE: Winsize = Winsize { ws_row: 50, ws_col: 400, ws_xpixel: 0, ws_ypixel: 0 };
pub const CTRL_C: &str = "\u{3}";
pub const CTRL_D: &str = "\u{4}";

/// Dropping it ends the command.
#[derive(Debug)]
pub struct Terminal {
    /// The end at which the person sits.
    end: File,
    child: Child,
    shown: Vec<u8>,
    /// How much of that was waited for.
    seen: usize,
}

impl Terminal {
    /// Starts a command that the terminal controls: what is typed may interrupt it.
    pub fn start(daemon: &Daemon, args: &[&str]) -> Self {
        let end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal can be made");
        grantpt(&end).and_then(|()| unlockpt(&end)).expect("the terminal can be used");
        tcsetwinsize(&end, SIZE).expect("the terminal has a size");
        let name = ptsname(&end, Vec::new()).expect("the terminal has a name");
        fcntl_setfl(&end, OFlags::NONBLOCK).expect("the terminal can be polled");
        let other = || {
            let opened = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
            Stdio::from(opened.expect("the terminal can be opened"))
        };
        let mut command = daemon.command(&["setsid".to_owned(), "--ctty".to_owned()]);
        command.args(args).env("TERM", "xterm").stdin(other()).stdout(other()).stderr(other());
        let child = command.spawn().expect("the command can be started");
        // With our copies of its end open, its end would not be seen.
        drop(command);
        Self { end: File::from(end), child, shown: Vec::new(), seen: 0 }
    }

    /// All that was shown until now.
    pub fn shown(&mut self) -> String {
        self.look();
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Waits until this is shown, behind what was waited for before.
    pub fn wait_for(&mut self, text: &str) {
        assert!(!text.is_empty(), "nothing is no text to wait for");
        find(&format!("the terminal shows `{text}`"), || {
            self.look();
            let at = self.shown[self.seen..].windows(text.len()).position(|part| part == text.as_bytes())?;
            self.seen += at + text.len();
            Some(())
        });
    }

    pub fn type_in(&mut self, keys: &str) {
        self.end.write_all(keys.as_bytes()).expect("the terminal takes what is typed");
    }

    /// Waits for the command's end; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let status = find("the command at the terminal ends", || {
            self.look();
            self.child.try_wait().expect("the command can be waited for")
        });
        status.code()
    }

    fn look(&mut self) {
        let mut block = [0; 4096];
        loop {
            match self.end.read(&mut block) {
                Ok(0) => return,
                Ok(count) => self.shown.extend_from_slice(&block[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Nobody is at the other end any more.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return,
                Err(error) => panic!("the terminal can't be read: {error}"),
            }
        }
    }
}

impl Drop for Terminal {
    #[expect(clippy::print_stderr, reason = "what a failed test saw says why it failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the terminal showed:\n{}", String::from_utf8_lossy(&self.shown));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
