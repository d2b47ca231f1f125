//! A blocking HTTP/1.1 client of the control socket: one request at a time, the connection kept.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest answer that is taken, and longest line of its head.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
const HEAD_LINE_BYTES_MAX: u64 = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    /// # Errors
    /// When nothing listens at `socket`.
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("failed to connect to `{}`", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).context("failed to limit reading")?;
        stream.set_write_timeout(Some(ANSWER_LIMIT)).context("failed to limit writing")?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// # Errors
    /// Any answer but 200 with JSON.
    pub(crate) fn get(&mut self, path: &str) -> Result<Value> {
        let body = self.exchange("GET", path, "")?;
        serde_json::from_slice(&body).with_context(|| format!("`{path}` was not answered with JSON"))
    }

    /// The body of the answer.
    ///
    /// # Errors
    /// Any answer but 200.
    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Result<Vec<u8>> {
        self.exchange("POST", path, &body.to_string())
    }

    /// Sends one message and waits for the end of its request.
    ///
    /// # Errors
    /// Any end but `completed`.
    pub(crate) fn send(&mut self, conversation: &str, text: &str) -> Result<()> {
        let body = self.post("/control/send", &serde_json::json!({ "text": text, "conversation": conversation }))?;
        let last = body.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        let end: Value = serde_json::from_slice(last).context("the last part of an answer is no JSON")?;
        ensure!(end["type"] == "end" && end["status"] == "completed", "a message was not answered: {end}");
        Ok(())
    }

    fn exchange(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.reader.get_mut().write_all(text.as_bytes()).with_context(|| format!("failed to ask `{path}`"))?;
        let (status, body) = answer(&mut self.reader).with_context(|| format!("no whole answer to `{path}`"))?;
        ensure!(status == 200, "`{path}` was answered with {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}

/// Reads one answer to its end: its status and body.
fn answer(reader: &mut impl BufRead) -> Result<(u16, Vec<u8>)> {
    let first = line(reader)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status: u16 = status.with_context(|| format!("not HTTP: {first:?}"))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = line(reader)?.to_ascii_lowercase();
        match header.split_once(':') {
            Some(("content-length", value)) => length = Some(value.trim().parse::<usize>().context("bad content-length")?),
            Some(("transfer-encoding", value)) => chunked = value.contains("chunked"),
            Some(_) => {}
            None if header.is_empty() => break,
            None => bail!("not a header: {header:?}"),
        }
    }
    let mut body = Vec::new();
    match length {
        _ if chunked => while read_chunk(reader, &mut body)? {},
        Some(length) => take(reader, length, &mut body)?,
        None => bail!("an answer without a length"),
    }
    Ok((status, body))
}

/// False after the last one.
fn read_chunk(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<bool> {
    let size = line(reader)?;
    let size =
        usize::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16).with_context(|| format!("not a chunk's size: {size:?}"))?;
    take(reader, size, body)?;
    let rest = line(reader)?;
    ensure!(rest.is_empty(), "a chunk is longer than its size");
    Ok(size > 0)
}

fn take(reader: &mut impl BufRead, bytes: usize, body: &mut Vec<u8>) -> Result<()> {
    ensure!(body.len().saturating_add(bytes) <= BODY_BYTES_MAX, "an answer of over {BODY_BYTES_MAX} bytes");
    let start = body.len();
    body.resize(start + bytes, 0);
    reader.read_exact(&mut body[start..]).context("the answer ends in its body")
}

/// One line without its end.
fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.take(HEAD_LINE_BYTES_MAX).read_line(&mut line)?;
    ensure!(line.ends_with('\n'), "the answer ends in a line: {line:?}");
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bodies_by_length_and_in_chunks_one_after_the_other() {
        let mut wire: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
            HTTP/1.1 409 Conflict\r\ntransfer-encoding: chunked\r\n\r\n2\r\nde\r\n3;x=y\r\nfgh\r\n0\r\n\r\n\
            HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(answer(&mut wire).unwrap(), (200, b"abc".to_vec()));
        assert_eq!(answer(&mut wire).unwrap(), (409, b"defgh".to_vec()));
        assert_eq!(answer(&mut wire).unwrap(), (200, Vec::new()));
        assert!(answer(&mut wire).is_err());
    }

    #[test]
    fn cut_and_hostile_answers_are_errors() {
        for bad in [
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(answer(&mut bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
