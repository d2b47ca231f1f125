//! Starts one child: vfork-style clone, own session, death signal, stdio, exec.
//!
//! Runs only in the single-threaded keeper. Between clone and exec the child shares our memory and
//! nothing but raw system calls happens there; its parent sleeps meanwhile, so what the child writes
//! to [`Shared`] is there when `clone` returns, and an exec error is known without a pipe.
#![allow(unsafe_code)]

use super::wire::{Order, Step};
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const STACK_BYTES: usize = 64 * 1024;
/// What a shell would search when the child's environment names no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Why a child could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) at: Step,
    pub(super) errno: i32,
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
    failure: Option<Failure>,
}

/// Starts `order` with `stdio` as its descriptors 0, 1, 2 and answers its PID once exec succeeded.
pub(super) fn spawn(order: &Order, stdio: &[OwnedFd; 3]) -> Result<i32, Failure> {
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
        failure: None,
    };
    let mut stack = vec![0_u8; STACK_BYTES];
    let top = (stack.as_mut_ptr() as usize + STACK_BYTES) & !15;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK suspends this only thread until the child execs or exits, so `shared`, the
    // stack and all pointers outlive the child's use of them and nothing runs at the same time.
    let pid = unsafe { libc::clone(child, top as *mut c_void, flags, (&raw mut shared).cast()) };
    if pid < 0 {
        return Err(Failure { at: Step::Clone, errno: last_errno() });
    }
    match shared.failure {
        None => Ok(pid),
        Some(failure) => {
            // SAFETY: plain waitpid for the child that just called _exit.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Err(failure)
        }
    }
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
        let failure = prepare_and_exec(shared);
        shared.failure = Some(failure);
        libc::_exit(127)
    }
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
