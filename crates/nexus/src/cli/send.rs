//! `nexus send`: one message, one answer.

use super::client::Client;
use super::failure::{Exit, Failure};
use super::out::Out;
use super::reply::Reply;
use super::talk::{self, End, Message};
use super::{Global, block_on};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nexus send what is on today\n  nexus send - < question.txt")]
pub(crate) struct Args {
    /// The message; `-` reads it from stdin
    #[arg(required = true, value_name = "TEXT")]
    text: Vec<String>,
    /// The conversation that it belongs to [default: default]
    #[arg(long, value_name = "NAME")]
    conversation: Option<String>,
    /// Who sends it, as the record shows it; for access it is the owner [default: local]
    #[arg(long, value_name = "NAME")]
    session_sender: Option<String>,
    /// An id of your own: the same id is answered, but never processed twice
    #[arg(long, value_name = "ID")]
    event_id: Option<String>,
    /// Print the answer only when it is complete
    #[arg(long)]
    no_stream: bool,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<Exit> {
    let text = match args.text.as_slice() {
        [only] if only == "-" => talk::whole_text(std::io::stdin().lock())?,
        words => words.join(" "),
    };
    if text.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "the message is empty").into());
    }
    let message = Message::new(text, args.conversation).sent_by(args.session_sender).with_event_id(args.event_id);
    let paths = global.paths()?;
    let client = Client::new(&paths);
    let out = global.out();
    let mut reply = Reply::new(out, out.terminal && !args.no_stream && !out.json);
    let end = block_on(talk::say(&client, &message, &mut |part| reply.take(part)))??;
    if out.json { json(out, &message, &end) } else { Ok(reply.finish(&end)?) }
}

fn json(out: Out, message: &Message, end: &End) -> anyhow::Result<Exit> {
    let mut answer = serde_json::to_value(end)?;
    answer["event_id"] = message.event_id().into();
    out.json(&answer)?;
    Ok(end.exit())
}
