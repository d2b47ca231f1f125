//! Starts one child: vfork-style clone, own cgroup, own session, death signal, stdio, exec.
//!
//! Runs only in the single-threaded keeper. Between clone and exec the child shares our memory and
//! nothing but raw system calls happens there; its parent sleeps meanwhile, so what the child writes
//! to [`Shared`] is there when `clone` returns, and an exec error is known without a pipe.
#![allow(unsafe_code)]

use super::wire::{Order, Step};
use rustix::fs::{Mode, OFlags};
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const STACK_BYTES: usize = 64 * 1024;
const STACK_ALIGN_BYTES: usize = 16;
const CLONE_FLAGS: c_int = libc::CLONE_VM | libc::CLONE_VFORK;
/// clone(2); wider than an `int`, as which not every C library has it.
#[cfg(target_arch = "x86_64")]
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// No descriptor.
const NONE: RawFd = -1;
/// What a shell would search when the child's environment names no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Why a child could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) at: Step,
    pub(super) errno: i32,
}

/// A child whose exec succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Started {
    pub(super) pid: i32,
    /// Why it isn't in the cgroup that it should be in.
    pub(super) outside: Option<i32>,
}

/// Everything the child needs, prepared before the clone: no allocation happens after it.
struct Plan {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: Option<CString>,
}

struct Shared<'a> {
    keeper_pid: i32,
    stdio: [RawFd; 3],
    candidates: &'a [*const c_char],
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    /// `cgroup.procs` of the cgroup that the child is to enter by itself.
    procs: RawFd,
    outside: Option<i32>,
    failure: Option<Failure>,
}

/// Starts `order` in `cgroup` with `stdio` as its descriptors 0, 1, 2; answers once exec succeeded.
pub(super) fn spawn(order: &Order, stdio: &[OwnedFd; 3], cgroup: Option<&OwnedFd>) -> Result<Started, Failure> {
    let plan = Plan::of(order)?;
    let pointers = |list: &[CString]| -> Vec<*const c_char> { list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect() };
    let (argv, env) = (pointers(&plan.argv), pointers(&plan.env));
    let candidates = pointers(&plan.candidates);
    let mut shared = Shared {
        keeper_pid: rustix::process::getpid().as_raw_nonzero().get(),
        stdio: [stdio[0].as_raw_fd(), stdio[1].as_raw_fd(), stdio[2].as_raw_fd()],
        candidates: &candidates[..plan.candidates.len()],
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        cwd: plan.cwd.as_ref().map_or(std::ptr::null(), |path| path.as_ptr()),
        procs: NONE,
        outside: None,
        failure: None,
    };
    let mut stack = vec![0_u8; STACK_BYTES];
    let inside = cgroup.and_then(|cgroup| clone_inside(cgroup, &mut shared, &mut stack));
    let pid = match inside {
        Some(pid) => pid,
        None => clone_and_enter(cgroup, &mut shared, &mut stack)?,
    };
    match shared.failure {
        None => Ok(Started { pid, outside: shared.outside }),
        Some(failure) => {
            // SAFETY: plain waitpid for the child that just called _exit.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Err(failure)
        }
    }
}

/// The child is in `cgroup` from its first moment, which costs it nothing (`CLONE_INTO_CGROUP`, clone(2)). `None`
/// when the kernel, or a filter of system calls, has none of it.
#[cfg(target_arch = "x86_64")]
fn clone_inside(cgroup: &OwnedFd, shared: &mut Shared<'_>, stack: &mut [u8]) -> Option<i32> {
    // SAFETY: plain data, in which zero means: not asked for.
    let mut asked: libc::clone_args = unsafe { std::mem::zeroed() };
    asked.flags = u64::from(CLONE_FLAGS.cast_unsigned()) | CLONE_INTO_CGROUP;
    asked.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    asked.stack = (stack.as_mut_ptr() as usize).next_multiple_of(STACK_ALIGN_BYTES) as u64;
    asked.stack_size = (STACK_BYTES - STACK_ALIGN_BYTES) as u64;
    asked.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    let begin: extern "C" fn(*mut c_void) -> c_int = child;
    let mut answer: i64 = libc::SYS_clone3;
    // SAFETY: as in `clone_and_enter`. No C library has a function for clone3. Its child comes back with an empty
    // stack of its own, so it must not return from here: it calls `child`, which never returns. The kernel keeps all
    // registers but rax, rcx and r11; what the child does to its own is nothing to its parent.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") answer,
            in("rdi") &raw const asked,
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") begin,
            in("r9") (&raw mut *shared).cast::<c_void>(),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    i32::try_from(answer).ok().filter(|&pid| pid > 0)
}

/// Elsewhere the child enters by itself.
#[cfg(not(target_arch = "x86_64"))]
fn clone_inside(_: &OwnedFd, _: &mut Shared<'_>, _: &mut [u8]) -> Option<i32> {
    None
}

/// The child moves itself into `cgroup` before exec, for which the kernel may take some 10 ms.
fn clone_and_enter(cgroup: Option<&OwnedFd>, shared: &mut Shared<'_>, stack: &mut [u8]) -> Result<i32, Failure> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let procs = cgroup.map(|cgroup| rustix::fs::openat(cgroup, "cgroup.procs", flags, Mode::empty()));
    match &procs {
        Some(Ok(procs)) => shared.procs = procs.as_raw_fd(),
        Some(Err(error)) => shared.outside = Some(error.raw_os_error()),
        None => {}
    }
    let top = (stack.as_mut_ptr() as usize + stack.len()) & !(STACK_ALIGN_BYTES - 1);
    // SAFETY: CLONE_VFORK suspends this only thread until the child execs or exits, so `shared`, the
    // stack and all pointers outlive the child's use of them and nothing runs at the same time.
    let pid = unsafe { libc::clone(child, top as *mut c_void, CLONE_FLAGS | libc::SIGCHLD, (&raw mut *shared).cast()) };
    if pid < 0 { Err(Failure { at: Step::Clone, errno: last_errno() }) } else { Ok(pid) }
}

impl Plan {
    fn of(order: &Order) -> Result<Self, Failure> {
        let text = |text: &String| CString::new(text.as_str()).map_err(|_| Failure { at: Step::Order, errno: libc::EINVAL });
        let argv: Vec<CString> = order.argv.iter().map(text).collect::<Result<_, _>>()?;
        let Some(program) = order.argv.first().filter(|program| !program.is_empty()) else {
            return Err(Failure { at: Step::Order, errno: libc::EINVAL });
        };
        let path = order.env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let candidates = if program.contains('/') {
            vec![text(program)?]
        } else {
            let in_dir = |dir: &str| format!("{}/{program}", if dir.is_empty() { "." } else { dir });
            path.split(':').map(|dir| text(&in_dir(dir))).collect::<Result<_, _>>()?
        };
        Ok(Self {
            candidates,
            argv,
            env: order.env.iter().map(text).collect::<Result<_, _>>()?,
            cwd: order.cwd.as_ref().map(text).transpose()?,
        })
    }
}

fn last_errno() -> i32 {
    // SAFETY: the C library's own per-thread variable.
    unsafe { *libc::__errno_location() }
}

extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `shared` is the parent's live variable (see `spawn`); from here on only system calls
    // that are allowed after vfork are made, and the function never returns into the parent's code.
    unsafe {
        let shared = &mut *shared.cast::<Shared<'_>>();
        shared.outside = shared.outside.or(enter(shared.procs));
        let failure = prepare_and_exec(shared);
        shared.failure = Some(failure);
        libc::_exit(127)
    }
}

/// Why the cgroup of `procs` could not be entered, if there is one to enter.
unsafe fn enter(procs: RawFd) -> Option<i32> {
    if procs == NONE {
        return None;
    }
    // SAFETY: a raw system call on a descriptor that the parent holds open. `0` is who writes it.
    let written = unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) };
    (written != 1).then(last_errno)
}

/// Returns only when something failed.
unsafe fn prepare_and_exec(shared: &Shared<'_>) -> Failure {
    // SAFETY: raw system calls on values prepared by the parent.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != shared.keeper_pid {
            libc::_exit(127); // the keeper died before the death signal was set
        }
        for (target, &fd) in shared.stdio.iter().enumerate() {
            if libc::dup2(fd, target as c_int) < 0 {
                return Failure { at: Step::Stdio, errno: last_errno() };
            }
        }
        if !shared.cwd.is_null() && libc::chdir(shared.cwd) < 0 {
            return Failure { at: Step::Chdir, errno: last_errno() };
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let mut worst = libc::ENOENT;
        for &path in shared.candidates {
            libc::execve(path, shared.argv, shared.env);
            match last_errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = libc::EACCES, // like a shell: look on, remember
                other => return Failure { at: Step::Exec, errno: other },
            }
        }
        Failure { at: Step::Exec, errno: worst }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keeper::leftovers::reap;
    use std::fs::{self, File};
    use std::path::Path;

    /// Starts `true` in a directory that is no cgroup, into which no kernel puts a child at its birth.
    fn started_in(directory: &Path) -> Started {
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let order = Order { id: 1, argv: vec!["true".into()], env: vec![], cwd: None, mark: "m".into(), cgroup: None };
        let cgroup = OwnedFd::from(File::open(directory).unwrap());
        let started = spawn(&order, &[null(), null(), null()], Some(&cgroup)).unwrap();
        reap(started.pid);
        started
    }

    #[test]
    fn a_child_that_is_not_born_in_its_cgroup_enters_it_by_itself_or_says_why_not() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(started_in(directory.path()).outside, Some(libc::ENOENT));
        let procs = directory.path().join("cgroup.procs");
        fs::write(&procs, "").unwrap();
        assert_eq!(started_in(directory.path()).outside, None);
        assert_eq!(fs::read_to_string(&procs).unwrap(), "0");
    }
}
