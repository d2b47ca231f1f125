//! Runs a child to its end: its whole output, bounded in bytes and time.

use crate::keeper::{ExitStatus, Keeper, SpawnError, SpawnSpec, Stdin};
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of stdout that are taken; more is an error.
const STDOUT_BYTES_MAX: usize = 1024 * 1024;
/// Last bytes of stderr that are kept.
const STDERR_BYTES_KEPT: usize = 2048;

/// How a child ended and what it said.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// The end of stderr.
    pub stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OneshotError {
    /// Nothing ran.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("`{program}` did not end within {limit_ms} ms and was killed")]
    TimedOut { program: String, limit_ms: u128 },
    #[error("`{program}` wrote more than {STDOUT_BYTES_MAX} bytes and was killed")]
    TooMuch { program: String },
    #[error("failed to read from `{program}`")]
    Read {
        program: String,
        #[source]
        source: std::io::Error,
    },
}

impl OneshotError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Spawn(error) => error.is_passing(),
            Self::TimedOut { .. } => true,
            Self::TooMuch { .. } => false,
            Self::Read { source, .. } => crate::error_text::is_passing(source),
        }
    }
}

/// Starts `spec`, gives it `input` and waits at most `limit`. Its whole tree is gone on return, or
/// soon after when this is cancelled.
///
/// # Errors
/// [`OneshotError`]. A non-zero exit is no error here.
pub async fn run(keeper: &Keeper, spec: SpawnSpec, input: Option<Vec<u8>>, limit: Duration) -> Result<Output, OneshotError> {
    let Ok(ended) = run_unless(keeper, spec, input, limit, pending::<Infallible>()).await;
    ended
}

/// As [`run`], but once `objection` comes the child is killed, and its whole tree is gone on return.
///
/// # Errors
/// The objection. What [`run`] gives stands within.
pub async fn run_unless<E>(
    keeper: &Keeper,
    spec: SpawnSpec,
    input: Option<Vec<u8>>,
    limit: Duration,
    objection: impl Future<Output = E>,
) -> Result<Result<Output, OneshotError>, E> {
    let program = spec.argv.first().cloned().unwrap_or_default();
    let stdin = input.map_or(Stdin::Null, Stdin::Whole);
    let mut process = match keeper.spawn(SpawnSpec { stdin, ..spec }).await {
        Ok(process) => process,
        Err(error) => return Ok(Err(error.into())),
    };
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let talk = async { tokio::join!(read_all(stdout), read_tail(stderr)) };
    let ended = tokio::select! {
        ended = tokio::time::timeout(limit, async { (talk.await, process.wait().await) }) => ended,
        objection = objection => {
            process.kill_tree().await;
            return Err(objection);
        }
    };
    let Ok(((read, tail), status)) = ended else {
        process.kill_tree().await;
        return Ok(Err(OneshotError::TimedOut { program, limit_ms: limit.as_millis() }));
    };
    Ok(match read {
        Ok(Some(stdout)) => Ok(Output { status, stdout, stderr: tail }),
        Ok(None) => Err(OneshotError::TooMuch { program }),
        Err(source) => Err(OneshotError::Read { program, source }),
    })
}

/// `None` when there was too much; reading on to the end keeps the child from blocking for ever.
async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Option<Vec<u8>>> {
    let Some(mut stream) = stream else { return Ok(Some(Vec::new())) };
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let got = stream.read(&mut chunk).await?;
        if got == 0 {
            return Ok((bytes.len() <= STDOUT_BYTES_MAX).then_some(bytes));
        }
        if bytes.len() <= STDOUT_BYTES_MAX {
            bytes.extend_from_slice(&chunk[..got]);
        }
    }
}

async fn read_tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut tail: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 4096];
    while let Ok(got @ 1..) = stream.read(&mut chunk).await {
        tail.extend_from_slice(&chunk[..got]);
        let surplus = tail.len().saturating_sub(STDERR_BYTES_KEPT);
        tail.drain(..surplus);
    }
    String::from_utf8_lossy(&tail).trim().to_owned()
}
