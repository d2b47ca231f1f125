//! Messages that reach a turn while it runs: what they hold, how a command reads them, as JSON lines on its stdin, and how a
//! model does. Which message that is, and whether it was taken in, the pipeline says.

use super::Sender;
use super::command::InputMessage;
use serde::Serialize;
use std::io;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

/// Where a runner gets them from. The channel is bounded, and whoever fills it never waits.
pub type Input = mpsc::Receiver<Steer>;

/// One message, with what a turn is told about its own.
#[derive(Debug)]
pub struct Steer {
    /// By which the agent says that it took the message in: the id of its request.
    pub message_id: String,
    pub content: String,
    /// As [`super::Turn::text`].
    pub text: String,
    pub attachments: serde_json::Value,
    pub sender: Sender,
    pub channel: String,
    pub capabilities: serde_json::Value,
    /// Tells once the agent said that it took the message in whether its request shares the run now, on disk. An error is
    /// no. A command doesn't wait for it.
    pub joined: oneshot::Receiver<bool>,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    type_: &'static str,
    #[serde(rename = "messageId")]
    message_id: &'a str,
    message: InputMessage<'a>,
}

fn line(steer: &Steer) -> io::Result<Vec<u8>> {
    let message = InputMessage {
        content: &steer.content,
        attachments: &steer.attachments,
        sender: &steer.sender,
        channel: &steer.channel,
        capabilities: &steer.capabilities,
    };
    let mut line = serde_json::to_vec(&Line { type_: "steer", message_id: &steer.message_id, message })?;
    line.push(b'\n');
    Ok(line)
}

/// Writes what comes, each as one line, however slowly the process reads. Ends when the process reads no more, or nothing
/// more can come; what was not confirmed by then was not taken in.
pub(super) async fn feed(stdin: Option<(pipe::Sender, Input)>) {
    let Some((mut stdin, mut input)) = stdin else { return };
    while let Some(steer) = input.recv().await {
        let written = match line(&steer) {
            Ok(line) => stdin.write_all(&line).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::debug!(target: "nexus::agent", message_id = steer.message_id, %error, "the process takes no more input");
            return;
        }
    }
}

/// Does `work` to its end, and `aside` beside it for as long as that takes.
pub(super) async fn beside<T>(work: impl Future<Output = T>, aside: impl Future<Output = ()>) -> T {
    let (mut work, mut aside) = (std::pin::pin!(work), std::pin::pin!(aside));
    tokio::select! {
        biased;
        done = work.as_mut() => done,
        () = aside.as_mut() => work.await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};
    use tokio::io::AsyncReadExt;

    fn steer(message_id: &str) -> Steer {
        let sender = Sender { id: "u1".into(), name: None, principal: "owner".into() };
        let (attachments, capabilities) = (json!([]), Value::Null);
        let (content, channel, (_, joined)) = ("one\ntwo".to_owned(), "fake".into(), oneshot::channel());
        Steer { message_id: message_id.into(), text: content.clone(), content, attachments, sender, channel, capabilities, joined }
    }

    #[tokio::test]
    async fn each_is_a_line_of_its_own_and_in_order() {
        let (stdin, mut read) = pipe::pipe().unwrap();
        let (give, input) = mpsc::channel(2);
        for id in ["req_1", "req_2"] {
            give.try_send(steer(id)).unwrap();
        }
        drop(give);
        feed(Some((stdin, input))).await;
        let mut text = String::new();
        read.read_to_string(&mut text).await.unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let message = json!({
            "content": "one\ntwo", "attachments": [], "sender": { "id": "u1", "name": null, "principal": "owner" },
            "channel": "fake", "capabilities": null,
        });
        let expected = ["req_1", "req_2"].map(|id| json!({ "type": "steer", "messageId": id, "message": message }));
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn a_process_that_reads_no_more_ends_it() {
        let (stdin, read) = pipe::pipe().unwrap();
        let (give, input) = mpsc::channel(2);
        give.try_send(steer("req_1")).unwrap();
        drop(read);
        feed(Some((stdin, input))).await;
        assert!(give.is_closed(), "somebody would wait for ever");
    }

    #[tokio::test]
    async fn work_waits_for_nothing_beside_it() {
        assert_eq!(beside(async { 1 }, std::future::pending()).await, 1);
        let late = async {
            tokio::task::yield_now().await;
            2
        };
        assert_eq!(beside(late, async {}).await, 2);
    }
}
